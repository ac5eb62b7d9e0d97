"""What asks for a trial of a sweep again."""

import dataclasses
import shlex
from pathlib import Path

import pytest

from xformer.configurables import load
from xformer.plan.sweep import flags

QUICKSTART = Path(__file__).parents[2] / "configs" / "runs" / "quickstart.gin"
LARGE = QUICKSTART.with_name("pretrain_xglm_7.5b.gin")
NAMED = (
    "Run.mesh=@wide/MeshConfig()",
    "wide/MeshConfig.tensor=2",
    'wide/MeshConfig.gradient_dtype="float32"',
    "Run.batch_size=4",
    "Run.accumulation_steps=2",
)


@pytest.mark.parametrize(
    ("path", "given"),
    [
        (QUICKSTART, ()),
        (LARGE, ("Run.batch_size=64", "MeshConfig.fsdp=4")),
        (QUICKSTART, NAMED),
        (QUICKSTART, ("Run.execution=@Execution()", 'Execution.layers="scan"')),
    ],
)
def test_flags_make_the_run_of_the_file_and_of_what_was_given(path, given):
    loaded = load(path, given)
    wanted = dataclasses.replace(
        loaded.run,
        mesh=dataclasses.replace(loaded.run.mesh, data=4, fsdp=2, tensor=8, slices=2),
        execution=dataclasses.replace(loaded.run.execution, remat="minimal"),
        batch_size=2 * loaded.run.batch_size,
    )
    assert wanted != loaded.run
    asked = shlex.split(flags(wanted, loaded.config_text, given))
    assert load(path, [one.removeprefix("--gin.") for one in asked]).run == wanted
