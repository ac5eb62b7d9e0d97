"""What devices that each hold some blocks of a row tell one another.

The devices that split a row hold equally many neighbouring blocks. To attend in blocks, each needs
one block from either neighbour (the window), the two global blocks, and those among which the
random blocks lie. Every function here has a counterpart that takes gradients back to the blocks
that they belong to. Without mesh axes a device holds the whole row and nothing is sent.

Arrays of blocks have any axis of blocks; the others may be split in ways that this file need not
know. To be called within `jax.shard_map` where there are axes.
"""

import functools
from dataclasses import dataclass

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from xformer.layers.block_softmax import Softmax


@dataclass(frozen=True)
class Shards:
    """The devices that split a row.

    Attributes:
        axes: Mesh axes that the tokens are split over; none for a row that is whole.
    """

    axes: tuple[str, ...] = ()

    @property
    def halo(self) -> int:
        """Blocks that `beside` adds at either side."""
        return 1 if self.axes else 0

    @property
    def count(self) -> int:
        """Number of devices."""
        return lax.axis_size(self.axes) if self.axes else 1

    @property
    def index(self) -> Int[Array, ""] | int:
        """Number of this device."""
        return lax.axis_index(self.axes) if self.axes else 0

    def total(self, x: Array) -> Array:
        """The sum over the devices."""
        return lax.psum(x, self.axes) if self.axes else x

    def joined(self, state: Softmax) -> Softmax:
        """The softmax of queries which read the keys of every device."""
        if not self.axes:
            return state
        top_BNMW = lax.pmax(state.top_BNMW, self.axes)
        own_BNMW = jnp.exp(state.top_BNMW - top_BNMW)
        total_BNMW = self.total(state.total_BNMW * own_BNMW)
        return Softmax(top_BNMW, total_BNMW, self.total(state.context_BNMWH * own_BNMW[..., None]))

    def beside(self, x: Array, axis: int) -> Array:
        """The device's blocks between the nearest ones of its neighbours (zeros at the ends)."""
        if not self.axes:
            return x
        last, first = lax.slice_in_dim(x, -1, None, axis=axis), lax.slice_in_dim(x, 0, 1, axis=axis)
        before, after = self._sent(last, 1), self._sent(first, -1)
        return jnp.concatenate([before, x, after], axis)

    def from_beside(self, dx: Array, axis: int) -> Array:
        """Gradients of the device's blocks from those of `beside`."""
        if not self.axes:
            return dx
        blocks = dx.shape[axis] - 2
        before = lax.slice_in_dim(dx, 0, 1, axis=axis)
        after = lax.slice_in_dim(dx, -1, None, axis=axis)
        own = lax.slice_in_dim(dx, 1, 1 + blocks, axis=axis)
        own = _added(own, self._sent(before, -1), blocks - 1, axis)
        return _added(own, self._sent(after, 1), 0, axis)

    def ends(self, x: Array, axis: int) -> Array:
        """The first and the last block of the row."""
        first, last = lax.slice_in_dim(x, 0, 1, axis=axis), lax.slice_in_dim(x, -1, None, axis=axis)
        return self._from_one(jnp.concatenate(self._at_ends(first, last), axis))

    def from_ends(self, dx: Array, d_ends: Array, axis: int) -> Array:
        """Gradients of the device's blocks with those of `ends` added."""
        d_ends = self.total(d_ends)
        first, last = (lax.slice_in_dim(d_ends, i, i + 1, axis=axis) for i in range(2))
        first, last = self._at_ends(first, last)
        return _added(_added(dx, first, 0, axis), last, dx.shape[axis] - 1, axis)

    def with_ends(self, ends: Array, blocks: int, axis: int) -> Array:
        """The device's blocks where only the ends of the row are known; zeros for the others."""
        if not self.axes:
            between = [(0, 0, blocks - 2 if i == axis else 0) for i in range(ends.ndim)]
            return lax.pad(ends, jnp.zeros((), ends.dtype), between)
        shape = [blocks if i == axis else size for i, size in enumerate(ends.shape)]
        first, last = (lax.slice_in_dim(ends, i, i + 1, axis=axis) for i in range(2))
        first, last = self._at_ends(first, last)
        return _added(_added(jnp.zeros(shape, ends.dtype), first, 0, axis), last, blocks - 1, axis)

    def prefix(self, x: Array, blocks: int, axis: int) -> Array:
        """The first blocks of the row."""
        if not self.axes:
            return lax.slice_in_dim(x, 0, blocks, axis=axis)
        held, own = x.shape[axis], jnp.arange(blocks) - self.index * x.shape[axis]
        found = jnp.take(x, own, axis=axis, mode="clip")
        is_own = (own >= 0) & (own < held)
        return self._from_one(jnp.where(_along(is_own, axis, x.ndim), found, 0))

    def from_prefix(self, dx: Array, d_prefix: Array, axis: int) -> Array:
        """Gradients of the device's blocks with those of `prefix` added."""
        blocks, held = d_prefix.shape[axis], min(d_prefix.shape[axis], dx.shape[axis])
        if self.axes:
            places = self.index * dx.shape[axis] + jnp.arange(held)
            found = jnp.take(self.total(d_prefix), places, axis=axis, mode="clip")
            d_prefix = jnp.where(_along(places < blocks, axis, dx.ndim), found, 0)
        return _added(dx, d_prefix, 0, axis)

    def _from_one(self, x: Array) -> Array:
        """What one device has where the others have zeros, every number by itself."""
        if not self.axes or x.dtype.itemsize > 2:
            return self.total(x)
        # As whole words: XLA's CPU compiler dies of sums of 16 bits where axes are left to it.
        *others, width = x.shape
        x = jnp.pad(x, [(0, 0)] * len(others) + [(0, width % 2)]).reshape(*others, -1, 2)
        words = self.total(lax.bitcast_convert_type(x, jnp.uint32))
        return lax.bitcast_convert_type(words, x.dtype).reshape(*others, -1)[..., :width]

    def _at_ends(self, first: Array, last: Array) -> tuple[Array, Array]:
        """The same on the devices that hold the ends of the row, zeros elsewhere."""
        if not self.axes:
            return first, last
        is_first, is_last = self.index == 0, self.index == self.count - 1
        return jnp.where(is_first, first, 0), jnp.where(is_last, last, 0)

    def _sent(self, x: Array, step: int) -> Array:
        """What the device `step` places before this one has; zeros where there is none."""
        devices = range(self.count)
        pairs = [(i, i + step) for i in devices if i + step in devices]
        return lax.ppermute(x, self.axes, pairs)


def _added(x: Array, part: Array, start: int, axis: int) -> Array:
    """Adds to some neighbouring blocks, in place."""
    size = part.shape[axis]
    take = functools.partial(lax.slice_in_dim, start_index=start, limit_index=start + size)
    return lax.dynamic_update_slice_in_dim(x, take(x, axis=axis) + part, start, axis)


def _along(x_M: Array, axis: int, dimensions: int) -> Array:
    """A vector as an array that broadcasts along one axis."""
    return x_M.reshape([-1 if i == axis else 1 for i in range(dimensions)])
