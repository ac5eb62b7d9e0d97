"""The shipped gin files: each loads, builds abstractly, and binds only what is its own."""

import ast
import itertools
import math
import re
import shutil
from pathlib import Path

import jax
import pytest

from xformer.configurables import load
from xformer.layers.execution import Execution
from xformer.layers.heads import ConditionalGeneration
from xformer.models.build import build, dummy_inputs
from xformer.models.umt5_config import UMT5Config
from xformer.partitioning import make_mesh
from xformer.training.state import blueprint

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
RUNS = sorted((CONFIGS / "runs").glob("*.gin"))
CONCERNS = {
    "models": "models/*",
    "heads": "heads",
    "data": "data",
    "optim": "optim",
    "mesh": "mesh",
}
PARTS = {name: sorted(CONFIGS.glob(f"{folder}/*.gin")) for name, folder in CONCERNS.items()}
DEFAULT = {
    "models": "models/xglm/tiny.gin",
    "heads": "heads/causal_lm.gin",
    "data": "data/prepared.gin",
    "optim": "optim/adamw_cosine.gin",
    "mesh": "mesh/data.gin",
}
ENCODER = "models/squeezebert/tiny.gin"
TASKS = ("multiple_choice", "question_answering", "sequence_classification", "token_classification")
# Head -> the data that it learns from.
LEARNS_FROM = {**{task: task for task in TASKS}, "masked_lm": "prepared"}
LEARNS_FROM |= {"pretraining": "pairs", "next_sentence": "pairs"}


def companions(part):
    """What a part goes with, where that is not the default."""
    kind, name = part.split("/")[0], Path(part).stem
    if part.startswith(("models/squeezebert", "models/bigbird")):
        return {"heads": "heads/masked_lm.gin"}
    if part.startswith("models/umt5"):
        return {"heads": "heads/conditional_generation.gin"}
    if part == "heads/conditional_generation.gin":
        return {"models": "models/umt5/tiny.gin"}
    if name == "sequence_to_sequence":
        own = {kind: f"{kind}/sequence_to_sequence.gin" for kind in ("heads", "data")}
        return {"models": "models/umt5/tiny.gin", **own}
    if part == "data/text.gin":
        return {"models": "models/xglm/564m.gin"}  # for its positions
    for head, data in LEARNS_FROM.items():
        if name == {"heads": head, "data": data}.get(kind) and name != "prepared":
            return {"models": ENCODER, "heads": f"heads/{head}.gin", "data": f"data/{data}.gin"}
    return {}


EVERY_PART = [(name, str(path.relative_to(CONFIGS))) for name in PARTS for path in PARTS[name]]
# What a part leaves to the run file.
LEFT = {
    "Cosine": ["peak = 1e-3"],
    "InverseSqrt": ["peak = 1e-2", "warmup_steps = 10"],
    "Linear": ["peak = 1e-4"],
    "WarmupStableDecay": ["peak = 1e-3", "decay_steps = 10"],
}


def keys(path):
    return re.findall(r"^([\w/.]+) = ", path.read_text(), re.MULTILINE)


def test_there_are_parts_and_runs():
    assert RUNS and all(PARTS.values())
    folders = {path.name for path in CONFIGS.iterdir()}
    assert folders == {"runs", *PARTS}


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_run_file_loads(path):
    loaded = load(path)
    assert loaded.run.steps >= 1
    text = path.read_text()
    assert re.match(r"# .+", text), "a run file opens with what it is"
    assert f"xformer train --gin_file configs/runs/{path.name}" in text


@pytest.mark.parametrize("concern, part", EVERY_PART)
def test_part_builds_in_a_run(concern, part, tmp_path):
    shutil.copytree(CONFIGS, tmp_path / "configs")
    parts = {**DEFAULT, **companions(part), concern: part}
    lines = [f'include "{one}"' for one in parts.values()]
    lines += ['Run.folder = "runs/x"', "Run.steps = 100", "Run.batch_size = 1024"]
    lines += ["Run.execution = @Execution()", 'Execution.layers = "scan"']
    text = "".join((tmp_path / "configs" / one.split('"')[1]).read_text() for one in lines[:5])
    built = [name for name in LEFT if f"@{name}()" in text]
    lines += [f"{name}.{left}" for name in built for left in LEFT[name]]
    (tmp_path / "configs" / "runs" / "all.gin").write_text("\n".join(lines) + "\n")
    run = load(tmp_path / "configs" / "runs" / "all.gin").run
    plan = blueprint(run, make_mesh(run.mesh, devices_for(run.mesh)))
    assert jax.tree.leaves(plan.shapes.params)


def devices_for(mesh):
    """As many devices as a mesh asks for; some may stand for others, as nothing is computed."""
    wanted = mesh.fsdp * mesh.tensor * mesh.sequence * mesh.slices
    return jax.devices() * max(1, wanted // len(jax.devices()))


def test_every_mesh_is_in_the_table_that_says_when_to_take_it():
    documented = (CONFIGS.parent / "docs" / "partitioning.md").read_text()
    named = re.findall(r"^\| `mesh/(\w+)\.gin` \| ([\d,]+)", documented, re.MULTILINE)
    assert sorted(name for name, _ in named) == [path.stem for path in PARTS["mesh"]]
    for name, devices in named:
        sizes = dict(re.findall(r"MeshConfig\.(\w+) = (\d+)$", mesh_text(name), re.MULTILINE))
        assert math.prod(map(int, sizes.values())) == int(devices.replace(",", ""))


def mesh_text(name):
    return (CONFIGS / "mesh" / f"{name}.gin").read_text()


def test_parts_of_different_concerns_bind_different_keys():
    for one, other in itertools.combinations(PARTS, 2):
        for first, second in itertools.product(PARTS[one], PARTS[other]):
            assert not set(keys(first)) & set(keys(second)), f"{first} and {second}"


@pytest.mark.parametrize("concern, part", EVERY_PART)
def test_part_includes_nothing_and_is_short(concern, part):
    text = (CONFIGS / part).read_text()
    assert "include" not in keys(CONFIGS / part) and not re.search("^include", text, re.M)
    assert len(text.splitlines()) <= 40 and text.startswith("# ")


@pytest.mark.parametrize(
    "size, count",
    [
        ("small", 306_601_984),
        ("base", 592_043_520),
        ("large", 1_242_449_920),
        ("xl", 3_768_356_864),
        ("xxl", 12_972_531_712),
    ],
)
def test_published_sizes_of_umt5_have_their_parameters(size, count):
    """Each is described without being allocated."""
    fields = dict(
        re.findall(r"UMT5Config.(\w+) = (\S+)", (CONFIGS / f"models/umt5/{size}.gin").read_text())
    )
    config = UMT5Config(**{key: ast.literal_eval(value) for key, value in fields.items()})
    module = build(config, ConditionalGeneration(), Execution(layers="scan"))
    shapes = jax.eval_shape(
        lambda: module.init(jax.random.key(0), **dummy_inputs(module, ConditionalGeneration()))
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count
