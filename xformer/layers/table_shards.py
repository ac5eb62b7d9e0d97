"""How a table of vectors, and the places of a batch that it serves, lie on the mesh in force.

The rows of a table are split over some mesh axes and its columns over others (`Rules.vocab`,
`Rules.embed`), and columns share their axes with the places: devices that hold other columns hold
other rows of the batch too. What the devices tell one another is written out here, as a compiler
left to itself gathers whole tables and adds up whole gradients.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array

from xformer.layers.sharding import dividing_axes, mesh_axes, ways

Axes = tuple[str, ...]


class TableShards(NamedTuple):
    """The mesh axes that a table and the places of a batch are split over.

    Attributes:
        batch: Axes of the rows of the batch.
        length: Axes of their tokens.
        rows: Axes of the table's rows, none of them among those of the places.
        columns: Axes of the table's columns, all of them among those of the places.
    """

    batch: Axes = ()
    length: Axes = ()
    rows: Axes = ()
    columns: Axes = ()

    @classmethod
    def of(cls, places: tuple[int, ...], rows: str, width: int) -> "TableShards":
        """Asks the rules and the mesh in force.

        Args:
            places: Shape of the batch, (rows, tokens).
            rows: Logical axis of the table's rows.
            width: Number of its columns.

        Returns:
            The axes, without those that do not divide. Rows that share axes with places are
            gathered over these: what devices found there would be of different places.
        """
        batch, length = map(dividing_axes, ("act_batch", "act_length"), places)
        held = tuple(axis for axis in mesh_axes(rows) if axis not in batch + length)
        columns = tuple(axis for axis in mesh_axes("embed") if axis in batch + length)
        return cls(batch, length, held, columns if width % ways(columns) == 0 else ())

    @property
    def places(self) -> Axes:
        """Axes of the places."""
        return self.batch + self.length

    def spec(self, letters: str, whole: str = "") -> PartitionSpec:
        """The partition of an array by its letters.

        Args:
            letters: Of every axis: B and T are rows and tokens, N the places of both, V and D rows
                and columns of the table.
            whole: Those that are not split.

        Returns:
            The partition.
        """
        places = {"B": self.batch, "T": self.length, "N": self.places}
        axes = {**places, "V": self.rows, "D": self.columns}
        return PartitionSpec(*(None if one in whole else axes[one] or None for one in letters))

    def run(self, function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable:
        """The function of what one device holds, as a function of whole arrays."""
        if not self.places + self.rows + self.columns:
            return function
        # Over all axes: where some were left to the compiler, XLA's CPU one dies of bfloat16 sums.
        return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=False)

    def with_all_columns(self, table: Array, axis: int) -> Array:
        """A device's rows of the table, whole."""
        return lax.all_gather(table, self.columns, axis=axis, tiled=True) if self.columns else table

    def own_columns(self, table: Array, axis: int) -> Array:
        """The sum over those who hold other columns, of which each keeps its own."""
        if not self.columns:
            return table
        table = jnp.moveaxis(table, axis, 0)
        # With an axis for the parts, whatever the layout: else TPUs add up all, at twice the bytes.
        parts = table.reshape(ways(self.columns), -1, table.shape[1])
        own = lax.psum_scatter(parts, self.columns, scatter_dimension=0)
        return jnp.moveaxis(own, 0, axis)

    def over_other_places(self, x: Array) -> Array:
        """The sum over those who hold the same columns and other places."""
        others = tuple(axis for axis in self.places if axis not in self.columns)
        return lax.psum(x, others) if others else x

    def over_places(self, x: Array) -> Array:
        """The sum over those who hold other places."""
        return lax.psum(x, self.places) if self.places else x

    def over_rows(self, x: Array) -> Array:
        """The sum over those who hold other rows of the table."""
        return lax.psum(x, self.rows) if self.rows else x

    def largest_over_rows(self, x: Array) -> Array:
        """The largest numbers among those who hold other rows of the table."""
        return lax.pmax(x, self.rows) if self.rows else x

    def first_row(self, count: int) -> Array | int:
        """The number of a device's first row of the table, of which it holds `count`."""
        return lax.axis_index(self.rows) * count if self.rows else 0

    def places_of_columns(self, ids_BT: Array) -> Array:
        """The places of all who hold other columns, which their own lie among."""
        for axis in self.columns:
            ids_BT = lax.all_gather(ids_BT, axis, axis=self._dimension(axis), tiled=True)
        return ids_BT

    def columns_to_places(self, x_BTD: Array) -> Array:
        """From some columns of many places to all columns of a device's own places."""
        for axis in reversed(self.columns):
            x_BTD = lax.all_to_all(x_BTD, axis, self._dimension(axis), 2, tiled=True)
        return x_BTD

    def places_to_columns(self, x_BTD: Array) -> Array:
        """The way back of `columns_to_places`."""
        for axis in self.columns:
            x_BTD = lax.all_to_all(x_BTD, axis, 2, self._dimension(axis), tiled=True)
        return x_BTD

    def share(self, places: int, rows: int) -> int:
        """The number of pairs of places and rows of which a device has both."""
        return places * rows // ways(self.batch + self.length + self.rows)

    def _dimension(self, axis: str) -> int:
        return 0 if axis in self.batch else 1
