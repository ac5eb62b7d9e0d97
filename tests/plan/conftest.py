"""Plans are made with libtpu or the CUDA plugin, packages that need neither TPU nor GPU."""

import importlib.util
import math

import pytest

from xformer.configurables import load
from xformer.plan.compilation import measure
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
