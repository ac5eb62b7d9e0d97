"""Looking up rows of a table that devices hold parts of.

Who has some columns of a row looks them up for all who have the others, and they exchange what they
found: nobody needs the table, and its gradient arrives where its parts are. Only a table that is
smaller than what is looked up in it is gathered instead.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Num

from xformer.layers.sharding import ways
from xformer.layers.table_shards import TableShards


class _Form(NamedTuple):
    """What is known of a lookup before its numbers."""

    shards: TableShards
    held: int
    dtype: jnp.dtype
    exchanges: bool


def look_up(
    table_VD: Num[Array, "V D"], ids_BT: Int[Array, "B T"], dtype: jnp.dtype, rows: str
) -> Float[Array, "B T D"]:
    """Looks up rows of a table.

    Args:
        table_VD: The table, in float32; its gradient is too. Decoding keeps it as something else.
        ids_BT: Row of each place; a number that is none gives NaN in a table of floats.
        dtype: Dtype of what is found.
        rows: Logical axis of the table's rows.

    Returns:
        A row for each place.
    """
    shards = TableShards.of(ids_BT.shape, rows, table_VD.shape[1])
    if not shards.rows + shards.columns:
        if table_VD.dtype == jnp.bfloat16:
            # CPUs look up in float32: in a loop, in a copy of the whole table, but for this.
            table_VD, ids_BT = lax.optimization_barrier((table_VD, ids_BT))
        found_BTD = table_VD.at[ids_BT].get(mode="fill", wrap_negative_indices=False)
        return found_BTD.astype(dtype)
    count = table_VD.shape[0]
    held = -(-count // ways(shards.rows))
    places = ids_BT.size // ways(shards.places)
    table_VD = jnp.pad(table_VD, [(0, held * ways(shards.rows) - count), (0, 0)])
    form = _Form(shards, held, jnp.dtype(dtype), places < held)
    found_BTD = _found(form, table_VD, ids_BT)
    is_row_BT = (ids_BT >= 0) & (ids_BT < count)
    return jnp.where(is_row_BT[..., None], found_BTD, jnp.nan)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _found(form: _Form, table_VD: Array, ids_BT: Array) -> Array:
    return _forward(form, table_VD, ids_BT)[0]


def _forward(form: _Form, table_VD: Array, ids_BT: Array) -> tuple[Array, Any]:
    """What is found, zeros where that is nothing; and what the backward pass needs."""
    shards = form.shards

    def find(table_VD: Array, ids_BT: Array) -> Array:
        if not form.exchanges:
            table_VD = shards.with_all_columns(table_VD.astype(form.dtype), 1)
        else:
            ids_BT = shards.places_of_columns(ids_BT)
        own_BT = ids_BT - shards.first_row(form.held)
        found_BTD = table_VD.at[own_BT].get(mode="fill", fill_value=0, wrap_negative_indices=False)
        found_BTD = shards.over_rows(found_BTD.astype(form.dtype))  # the others have found zeros
        return shards.columns_to_places(found_BTD) if form.exchanges else found_BTD

    specs = shards.spec("VD"), shards.spec("BT")
    return shards.run(find, specs, shards.spec("BTD", whole="D"))(table_VD, ids_BT), ids_BT


def _backward(form: _Form, ids_BT: Array, dfound_BTD: Array) -> tuple[Array, np.ndarray]:
    """The gradient of the table."""
    shards = form.shards

    def add_up(ids_BT: Array, dfound_BTD: Array) -> Array:
        if form.exchanges:
            ids_BT = shards.places_of_columns(ids_BT)
            dfound_BTD = shards.places_to_columns(dfound_BTD)
        own_BT = ids_BT - shards.first_row(form.held)
        dtable_VD = jnp.zeros((form.held, dfound_BTD.shape[2]))
        dtable_VD = dtable_VD.at[own_BT].add(
            dfound_BTD.astype(jnp.float32), mode="drop", wrap_negative_indices=False
        )
        if not form.exchanges:
            dtable_VD = shards.own_columns(dtable_VD, 1)
        return shards.over_other_places(dtable_VD)

    specs = shards.spec("BT"), shards.spec("BTD", whole="D")
    dtable_VD = shards.run(add_up, specs, shards.spec("VD"))(ids_BT, dfound_BTD)
    return dtable_VD, np.zeros(ids_BT.shape, jax.dtypes.float0)


_found.defvjp(_forward, _backward)
