"""A small run compiled for GPUs."""

from pathlib import Path

QUICKSTART = Path(__file__).parents[2] / "configs" / "runs" / "quickstart.gin"
SMALL = (
    "Run.batch_size=8",
    "MeshConfig.fsdp=2",
    "MeshConfig.tensor=2",
    "Run.execution=@Execution()",
    'Execution.layers="scan"',
    'Execution.remat="full"',
)


def test_gpus_are_planned_for_without_one(plan_of):
    plan = plan_of(QUICKSTART, "h100:2x2", *SMALL, length=64)
    assert plan.fits and plan.topology.chips == 4
    assert plan.state_bytes <= plan.memory.arguments < plan.memory.needed
    kinds = {(one.kind, one.axes) for one in plan.collectives}
    assert {("all-gather", "fsdp"), ("reduce-scatter", "fsdp"), ("all-reduce", "tensor")} <= kinds
    gathered = sum(one.array_bytes for one in plan.collectives if one.kind == "all-gather")
    assert gathered < 3 * 4 * plan.parameters  # float32, forward and backward


def test_slices_of_gpus_are_hosts(plan_of):
    slices = ("Run.batch_size=8", "MeshConfig.tensor=2", "MeshConfig.slices=2")
    plan = plan_of(QUICKSTART, "h100:1x2", *slices, length=64)
    assert plan.fits and plan.mesh["data"] == 2 and plan.topology.name == "2 x h100:1x2"
    assert {"data", "tensor"} <= {one.axes for one in plan.collectives}
