"""Plans are made with libtpu or the CUDA plugin, packages that need neither TPU nor GPU."""

import importlib.util
import math

import pytest

from xformer.configurables import load
from xformer.layers.execution import Execution
from xformer.plan.compilation import Bounds, Memory, Plan, measure
from xformer.plan.hlo import Collective
from xformer.plan.topology import Topology


@pytest.fixture(scope="session")
def plan_of():
    """Plans a run file with bindings for a topology, quickly."""

    def plan(path, name, *bindings, length=None):
        run = load(path, list(bindings)).run
        topology = Topology.parse(name, run.mesh.slices)
        if topology.chip.is_tpu and importlib.util.find_spec("libtpu") is None:
            pytest.skip("needs libtpu: requirements/plan.txt")
        if not topology.chip.is_tpu and importlib.util.find_spec("jax_cuda12_plugin") is None:
            pytest.skip("needs JAX's CUDA plugin, but no GPU: pip install 'xformer-jax[cuda]'")
        return measure(run, topology, topology.devices(), length=length, quick=True)

    return plan


@pytest.fixture
def within():
    """Compares numbers within a share of the second."""
    return lambda found, wanted, share: math.isclose(found, wanted, rel_tol=share)


@pytest.fixture
def invented():
    """A plan of nothing."""
    return Plan(
        topology=Topology.parse("v5e:2x2"),
        mesh={"data": 1, "fsdp": 2, "sequence": 1, "tensor": 2},
        execution=Execution(remat="full"),
        batch_size=8,
        accumulation_steps=1,
        rows={"input_ids": (64,)},
        parameters=1000,
        state_bytes=3 * 2**30,
        flops=10**12,
        recomputed=0,
        memory=Memory(2**32, 2**32, 2**32, 2**33, 2**33),
        required=None,
        collectives=(Collective("all-gather", "fsdp", 2, 4 * 10**9, 7),),
        least=(Collective("all-gather", "fsdp", 2, 2 * 10**9),),
        bounds=Bounds(0.1, 0.05, 0.02, 0.0),
    )
