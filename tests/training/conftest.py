"""A small corpus, and runs on it that take milliseconds a step."""

import dataclasses
import json
import os
import pydoc_data.topics
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from xformer.data.pipeline import PreparedData
from xformer.data.prepare import PrepareOptions, prepare
from xformer.layers.execution import Execution
from xformer.layers.heads import CausalLM
from xformer.models.xglm import XGLMConfig
from xformer.objectives import NextToken
from xformer.optim import AdamW, Cosine
from xformer.partitioning import MeshConfig
from xformer.training.checkpoints import complete_steps
from xformer.training.config import Checkpoints, Run
from xformer.training.runlog import read_metrics

TOKENIZER = Path(__file__).parents[1] / "tokenization" / "fixtures" / "xglm"


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Prepared folders `train` and `validation`, of rows of 32 tokens."""
    folder = tmp_path_factory.mktemp("corpus")
    texts = [text for _, text in sorted(pydoc_data.topics.topics.items())]
    for name, part in (("train", texts[4:16]), ("validation", texts[:3])):
        source = folder / f"{name}.jsonl"
        source.write_text("".join(json.dumps({"text": text[:3000]}) + "\n" for text in part))
        options = PrepareOptions(length=32)
        prepare([str(source)], TOKENIZER, folder / name, options=options, workers=1)
    return folder


@pytest.fixture(scope="session")
def vocabulary(corpus):
    """Number of tokens of the corpus's tokenizer."""
    manifest = json.loads((corpus / "train" / "manifest.json").read_text())
    return manifest["tokenizer"]["vocab_size"]


RUN_FILE = """
Run.model = @XGLMConfig()
XGLMConfig.vocab_size = {vocabulary}
XGLMConfig.max_position_embeddings = 32
XGLMConfig.num_layers = 2
XGLMConfig.attention_heads = 2
Run.head = @heads.CausalLM()
Run.objective = @NextToken()
Run.optimizer = @AdamW()
AdamW.learning_rate = 3e-3
Run.train_data = @train/PreparedData()
train/PreparedData.path = "{corpus}/train"
Run.validation_data = @validation/PreparedData()
validation/PreparedData.path = "{corpus}/validation"
Run.batch_size = 8
Run.folder = "{folder}"
"""


@pytest.fixture(scope="session")
def write_run_file(corpus, vocabulary):
    """Writes a run file for a folder, with more lines of one's own."""

    def write(path, folder, *lines, corpus=corpus):
        text = RUN_FILE.format(vocabulary=vocabulary, corpus=corpus, folder=folder)
        path.write_text(text + "\n".join(lines) + "\n")

    return write


@pytest.fixture
def make_run(corpus, vocabulary, tmp_path):
    """Makes a small run with dropout, validation and two checkpoints; keywords replace fields."""

    def make(**fields):
        base = Run(
            model=XGLMConfig(
                vocab_size=vocabulary,
                max_position_embeddings=32,
                d_model=16,
                ffn_dim=32,
                num_layers=2,
                attention_heads=2,
            ),
            head=CausalLM(),
            objective=NextToken(z_loss=1e-4),
            train_data=PreparedData(str(corpus / "train")),
            optimizer=AdamW(Cosine(1e-2, warmup_steps=2)),
            steps=12,
            batch_size=8,
            folder=str(tmp_path / "run"),
            validation_data=PreparedData(str(corpus / "validation")),
            execution=Execution(),
            mesh=MeshConfig(),
            log_every_steps=1,
            eval_every_steps=5,
            eval_batches=2,
            checkpoints=Checkpoints(every_steps=5, keep=2),
        )
        return dataclasses.replace(base, **fields)

    return make


@pytest.fixture
def curve():
    """Reads the losses of a run folder as exact text, by kind and step."""

    def read(folder):
        return {
            (record["kind"], record["step"]): float(record["loss"]).hex()
            for record in read_metrics(folder)
            if record["kind"] in ("train", "validation")
        }

    return read


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """Equal programs are compiled once for all tests here, and for processes they start."""
    folder = str(tmp_path_factory.mktemp("compiled"))
    settings = {
        "jax_compilation_cache_dir": folder,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    yield folder
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def start_training(compilation_cache):
    """Starts `xformer train` on a run file in a process of its own."""
    environment = {
        **{key: value for key, value in os.environ.items() if key != "XLA_FLAGS"},
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": compilation_cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }

    def start(run_file, *bindings):
        command = [sys.executable, "-m", "xformer.cli.main", "train", "--plain"]
        return subprocess.Popen([*command, "--gin_file", str(run_file), *bindings], env=environment)

    return start


@pytest.fixture
def kill_in_training(start_training):
    """Trains into a folder, and kills that once it is some steps further and has a checkpoint."""

    def newest_step(folder):
        log = folder / "metrics.jsonl"
        return log.read_text().count('"kind": "train"') if log.exists() else 0

    def kill(run_file, folder, kills, steps):
        for _ in range(kills):
            target = newest_step(folder) + 15
            with start_training(run_file) as process:
                while process.poll() is None and not (
                    newest_step(folder) >= target and complete_steps(folder / "checkpoints")
                ):
                    time.sleep(0.001)
                process.kill()
        assert newest_step(folder) < steps, "the kills came too late to mean anything"

    return kill
