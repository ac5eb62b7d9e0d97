"""Which rows of a batch a process reads, for any mesh and any number of processes."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from xformer.partitioning import (
    MESH_AXES,
    MeshConfig,
    Rules,
    batch_sharding,
    batch_share,
    make_mesh,
)

pytestmark = pytest.mark.usefixtures("untyped")  # a stand-in takes the place of a sharding


def seen_by(process, processes, mesh):
    """The sharding of a batch as one of several processes with as many devices each sees it."""
    sharding = batch_sharding(mesh, Rules())
    each = len(jax.devices()) // processes

    def held(shape):
        places = sharding.devices_indices_map(shape)
        return {device: at for device, at in places.items() if device.id // each == process}

    return SimpleNamespace(
        mesh=mesh, shard_shape=sharding.shard_shape, addressable_devices_indices_map=held
    )


@pytest.mark.parametrize(
    ("mesh", "processes", "shares"),
    [
        (MeshConfig(data=8), 2, [(0, 2), (1, 2)]),
        (MeshConfig(data=8), 4, [(0, 4), (1, 4), (2, 4), (3, 4)]),
        (MeshConfig(data=2, fsdp=4), 2, [(0, 2), (1, 2)]),
        (MeshConfig(data=2, fsdp=2, tensor=2), 4, [(0, 4), (1, 4), (2, 4), (3, 4)]),
        # The devices of two processes hold the same rows, of all of them the same.
        (MeshConfig(data=2, tensor=4), 4, [(0, 2), (0, 2), (1, 2), (1, 2)]),
        (MeshConfig(data=1, tensor=8), 2, [(0, 1), (0, 1)]),
        (MeshConfig(data=1, sequence=8), 4, [(0, 1)] * 4),
        (MeshConfig(data=4, sequence=2), 1, [(0, 1)]),
        (MeshConfig(data=2, fsdp=4, slices=2), 2, [(0, 2), (1, 2)]),
    ],
)
def test_processes_read_the_rows_that_their_devices_hold(mesh, processes, shares):
    mesh = make_mesh(mesh)
    assert [batch_share(seen_by(at, processes, mesh)) for at in range(processes)] == shares


def test_rows_that_are_no_neighbours_are_refused():
    mixed = np.array(jax.devices()).reshape(2, 4).T.reshape(8, 1, 1, 1)
    with pytest.raises(ValueError, match=r"must hold neighbouring rows of a batch; set MeshConfig"):
        batch_share(seen_by(0, 2, Mesh(mixed, MESH_AXES)))
