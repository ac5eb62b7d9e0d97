"""Runs on a task that start from a model: killed, resumed, and refused other weights."""

import json
import shutil
from pathlib import Path

import jax
import pytest

from xformer.cli.main import main
from xformer.models.squeezebert_config import SqueezeBertConfig
from xformer.pretrained.squeezebert import FlaxSqueezeBertForMaskedLM
from xformer.training.runlog import read_metrics

TOKENIZER = Path(__file__).parents[1] / "tokenization" / "fixtures" / "squeezebert"
SIZES = {"vocab_size": 2000, "hidden_size": 16, "embedding_size": 16, "intermediate_size": 32}
SIZES |= {"num_hidden_layers": 1, "num_attention_heads": 4, "max_position_embeddings": 32}
STEPS, KILLS = 200, 2


@pytest.fixture
def place(tmp_path):
    """A model, rows of a task and a run file that starts the task from the model."""
    FlaxSqueezeBertForMaskedLM(SqueezeBertConfig(**SIZES), seed=1).save_pretrained(
        tmp_path / "model"
    )
    rows = [{"text": f"it is {'very ' * i}so", "label": i % 2} for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = "SequenceClassificationData"
    settings = {
        "Run.model": "@SqueezeBertConfig()",
        "Run.head": "@heads.SequenceClassification()",
        "Run.objective": "@Classification()",
        "Run.train_data": f"@{data}()",
        "Run.validation_data": f"@{data}()",
        "Run.optimizer": "@AdamW()",
        "Run.start": "@Pretrained()",
        "Run.checkpoints": "@Checkpoints()",
        "Run.steps": STEPS,
        "Run.batch_size": 8,
        "Run.log_every_steps": 1,
        "Run.eval_every_steps": 50,
        "Run.folder": repr(str(tmp_path / "run")),
        "AdamW.learning_rate": 1e-3,
        "Checkpoints.every_steps": 10,
        "Pretrained.path": repr(str(tmp_path / "model")),
        f"{data}.files": (str(tmp_path / "rows.jsonl"),),
        f"{data}.tokenizer": repr(str(TOKENIZER)),
        f"{data}.length": 32,
        **{f"SqueezeBertConfig.{key}": value for key, value in SIZES.items()},
        "SqueezeBertConfig.hidden_dropout_prob": 0.1,
    }
    (tmp_path / "run.gin").write_text("".join(f"{k} = {v}\n" for k, v in settings.items()))
    return tmp_path


def train(place, *bindings):
    return main(["train", "--gin_file", str(place / "run.gin"), "--plain", *bindings])


def losses(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    kept = [one for one in lines if one["kind"] in ("train", "validation")]
    return {(one["kind"], one["step"], one["loss"], one.get("accuracy")) for one in kept}


def test_kills_of_a_task_that_starts_from_a_model_change_no_bit(
    place, start_training, kill_in_training
):
    file, folder, whole = place / "run.gin", place / "run", place / "whole"
    assert start_training(file, f"--gin.Run.folder='{whole}'").wait() == 0
    kill_in_training(file, folder, KILLS, STEPS)
    shutil.rmtree(place / "model")  # what goes on from a checkpoint needs it no more
    assert start_training(file).wait() == 0
    assert losses(folder) == losses(whole)
    found = [one["event"] for one in read_metrics(folder) if one["kind"] == "event"]
    assert found.count("pretrained") == 1 and found.count("resumed") == KILLS


@pytest.mark.usefixtures("quick_compilation")
def test_other_weights_are_another_run_where_nothing_was_saved(place, capsys):
    def start_from(seed, factor):
        shutil.rmtree(place / "model")
        model = FlaxSqueezeBertForMaskedLM(SqueezeBertConfig(**SIZES), seed=seed)
        params = jax.tree.map(lambda leaf: leaf * factor, model.params)
        model.save_pretrained(place / "model", params=params)

    start_from(seed=0, factor=1e30)
    assert train(place, "--gin.Run.validation_data=None") == 2
    assert "not finite" in capsys.readouterr().err
    start_from(seed=2, factor=1.0)
    assert train(place, "--gin.Run.validation_data=None") == 2
    assert "holds a run with other settings: start was '" in capsys.readouterr().err
    provenance = json.loads((place / "run" / "provenance.json").read_text())
    assert len(provenance["start"]) == 64
