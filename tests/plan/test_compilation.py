"""A small run compiled for a few chips."""

import dataclasses
import math
from pathlib import Path

import pytest

from xformer.configurables import load
from xformer.partitioning import MeshConfig
from xformer.plan import report
from xformer.plan.advice import advice
from xformer.plan.compilation import Bounds, Memory, _required
from xformer.plan.sweep import Trial, _steps, meshes, ranking, sweep
from xformer.plan.topology import Topology

QUICKSTART = Path(__file__).parents[2] / "configs" / "runs" / "quickstart.gin"
MESH = ("Run.batch_size=8", "MeshConfig.fsdp=2", "MeshConfig.tensor=2")
SCAN = ("Run.execution=@Execution()", 'Execution.layers="scan"', 'Execution.remat="full"')


@pytest.fixture(scope="module")
def small(plan_of):
    return plan_of(QUICKSTART, "v5e:2x2", *MESH, *SCAN, length=64)


def test_a_small_run_fits_and_says_what_it_needs(small):
    assert small.fits and small.required is None
    assert small.mesh == {"data": 1, "fsdp": 2, "sequence": 1, "tensor": 2}
    assert small.tokens == 8 * 64
    batch = 3 * 4 * 64 * 4  # three int32 arrays, split over fsdp alone
    assert small.state_bytes + batch <= small.memory.arguments < 1.1 * small.state_bytes + batch
    assert small.memory.aliased > 0.99 * small.state_bytes  # the state is donated
    assert 0.1 < small.recomputed / small.flops < 0.3


def test_weights_are_gathered_over_fsdp_and_activations_reduced_over_tensor(small):
    kinds = {(one.kind, one.axes) for one in small.collectives}
    assert ("all-gather", "fsdp") in kinds
    assert ("all-reduce", "tensor") in kinds


def test_one_device_says_nothing_to_others(plan_of):
    plan = plan_of(QUICKSTART, "v5e:1x1", "Run.batch_size=2", *SCAN, length=64)
    assert plan.collectives == ()
    assert (plan.bounds.links, plan.bounds.network) == (0.0, 0.0)
    assert plan.bounds.compute == plan.flops / 197e12


def test_gradients_cross_the_network_between_slices(plan_of):
    slices = ("Run.batch_size=8", "MeshConfig.fsdp=4", "MeshConfig.slices=2", *SCAN)
    plan = plan_of(QUICKSTART, "v5e:2x2", *slices, length=64)
    assert plan.topology.chips == 8
    assert plan.bounds.network > 0.0


def test_a_mesh_that_does_not_divide_the_chips_is_refused(plan_of):
    with pytest.raises(ValueError, match="must multiply to the 4 devices"):
        plan_of(QUICKSTART, "v5e:2x2", "MeshConfig.fsdp=3", length=64)


def test_what_waits_on_the_host_takes_no_memory_of_the_device(plan_of):
    def memory(remat):
        execution = ("Run.execution=@Execution()", 'Execution.layers="scan"')
        deep = ("XGLMConfig.num_layers=16", f'Execution.remat="{remat}"')
        return plan_of(QUICKSTART, "v5e:2x2", *MESH, *execution, *deep, length=512).memory

    minimal, full, offload = map(memory, ("minimal", "full", "offload"))
    entered = 16 * 4 * 512 * 256 * 4  # float32: layers, rows of a device, tokens, width
    assert (minimal.host, full.host, offload.host) == (0, 0, entered)
    assert offload.temporary + entered < full.temporary < minimal.temporary


def test_a_run_that_does_not_fit_is_planned_and_advised(plan_of):
    large = ("Run.batch_size=4096", "XGLMConfig.vocab_size=512000")
    plan = plan_of(QUICKSTART, "v5e:2x2", *large, length=512)
    assert not plan.fits and plan.memory is None and plan.bounds is None
    assert plan.required > plan.topology.hbm_bytes
    said = "\n".join(report.lines(plan))
    assert "DOES NOT FIT" in said and "at least" not in said
    found = advice(load(QUICKSTART, list(large)).run, plan)
    assert [line for line in found if 'Execution.remat = "full" (now "none")' in line]
    assert [line for line in found if "Run.accumulation_steps = 2" in line]
    assert [line for line in found if 'Execution.attention = "pallas"' in line]
    assert report.as_json(plan)["fits"] is False


@pytest.mark.parametrize(
    ("message", "wanted"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (123.32G) exceeds available HBM (15.75G).",
            123.32 * 2**30,
        ),
        ("RESOURCE_EXHAUSTED: compile permanent error. Used 18.16G of 15.75G hbm.", 18.16 * 2**30),
        ("RESOURCE_EXHAUSTED: something else", math.inf),
        ("INVALID_ARGUMENT: Mosaic failed", None),
    ],
)  # fmt: skip
def test_what_the_compiler_could_not_find_is_read(message, wanted):
    assert _required(message) == wanted


def test_memory_needed_leaves_out_what_is_donated():
    memory = Memory(arguments=100, outputs=90, aliased=80, temporary=50, peak=140)
    assert memory.needed == 160
    assert memory.traffic == 100 + 90 + 2 * 40


def test_a_step_takes_as_long_as_the_longest():
    bounds = Bounds(compute=2.0, memory=3.0, links=1.0, network=0.0)
    assert (bounds.step, bounds.slowest) == (3.0, "memory")


def test_the_text_of_a_plan_has_its_figures(small):
    said = "\n".join(report.lines(small))
    assert "topology     v5e:2x2, 4 chips" in said
    assert "mesh         fsdp 2, tensor 2" in said
    assert "8 rows, 512 tokens; float32, layers scan, remat full" in said
    assert f"{small.parameters:,}" in said
    assert "of 15.75 GiB: fits" in said
    assert f"operations of a step: {small.flops:.4g}" in said
    described = report.as_json(small)
    assert described["memory"]["needed"] == small.memory.needed
    assert described["bounds"]["step"] == small.bounds.step
    assert described["collectives"][0]["wire_bytes"] == small.collectives[0].wire_bytes


def test_meshes_of_a_sweep_begin_with_the_run_s_own_and_use_all_devices():
    found = list(meshes(MeshConfig(fsdp=4), 16))
    assert found[0] == MeshConfig(data=4, fsdp=4)
    assert len(set(found)) == len(found) > 4
    assert all(math.prod(one.shape(16).values()) == 16 for one in found)
    assert all(one.data % 2 == 0 for one in meshes(MeshConfig(slices=2), 16))


@pytest.mark.parametrize("layers", ["loop", "scan"])
def test_a_sweep_tries_every_policy_that_the_layers_have(layers):
    execution = ("Run.execution=@Execution()", f'Execution.layers="{layers}"')
    tried = {one.execution.remat for one in _steps(load(QUICKSTART, list(execution)).run)}
    assert tried == {"none", "minimal", "full"} | ({"offload"} if layers == "scan" else set())


def test_a_sweep_ranks_what_fits_by_time_for_a_token_and_leaves_out_the_rest(small):
    run = load(QUICKSTART, [*MESH, *SCAN]).run
    small = dataclasses.replace(small, topology=Topology.parse("v5e:2x2"))

    def measure(candidate):
        if candidate.mesh.tensor > 2:
            raise ValueError("mesh axis 'tensor'=4 must divide the model's heads")
        bounds = dataclasses.replace(small.bounds, compute=1.0 * candidate.mesh.tensor)
        plan = dataclasses.replace(small, batch_size=candidate.batch_size, bounds=bounds)
        if candidate.execution.remat == "none":
            return dataclasses.replace(plan, memory=None, bounds=None, required=math.inf)
        return plan

    told = []
    trials = sweep(run, 4, measure, lambda *one: told.append(one), lambda one: str(one.batch_size))
    assert len(told) == len(trials) == len({trial.run for trial in trials})
    assert [number for _, number, _ in told] == list(range(1, len(trials) + 1))
    assert {most >= len(trials) for _, _, most in told} == {True}
    best = trials[0]
    assert (best.run.mesh.tensor, best.run.batch_size) == (1, 2 * run.batch_size)
    assert best.run.execution.remat != "none"
    assert {trial.flags for trial in trials} == {"4", "8", "16"} and best.flags == "16"
    ranks = [trial.rank for trial in trials]
    assert ranks == sorted(ranks) and ranks[-1] == (math.inf, math.inf, math.inf)
    said = "\n".join(ranking(trials))
    assert "refused" in said and "too much" in said and "16" in said


def test_of_two_alike_the_one_that_leaves_the_host_alone_is_better(invented):
    run = load(QUICKSTART).run
    memory = dataclasses.replace(invented.memory, host=2**30)
    offloads = dataclasses.replace(
        invented, memory=memory, bounds=dataclasses.replace(invented.bounds, memory=0.01)
    )
    assert Trial(run, invented).rank < Trial(run, offloads).rank


def test_a_refused_trial_has_no_rank():
    run = load(QUICKSTART).run
    assert Trial(run, None, "because").rank == (math.inf, math.inf, math.inf)
