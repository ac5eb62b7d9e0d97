"""Dense attention for TPUs: what a step of the kernels holds of each array."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from xformer.layers.kernels.dense_tiles import (
    Inputs,
    Shape,
    Side,
    lengthened,
    lengthened_bias,
    table_of,
)
from xformer.layers.kernels.dense_tpu_kernels import ROWS, Held
from xformer.layers.kernels.tiles import LOWEST


def call(
    shape: Shape,
    kernel: Callable[..., None],
    inputs: Inputs,
    *,
    products: int,
    results: tuple[Any, ...],
    scratch: dict[str, int],
    of_keys: bool = False,
    of_biases: bool = False,
) -> Any:
    """Runs a kernel for all heads, rows of the batch, own tiles, and those that they meet.

    Args:
        shape: The sizes.
        kernel: The kernel.
        inputs: What it reads.
        products: Products for each tile.
        results: For each result its dtype, or None for float32 numbers of tokens.
        scratch: Columns of what is kept from one listed tile to the next.
        of_keys: Whether keys are the own tokens.
        of_biases: Whether the last result are sums of score gradients by distance.

    Returns:
        The results.
    """
    own, listed = shape.sides(of_keys)
    given, specs = _held(shape, of_keys, inputs)
    kept = {name: pltpu.VMEM((own.width, size), jnp.float32) for name, size in scratch.items()}
    if given["own"].segments is not None:
        kept["segments"] = pltpu.VMEM((own.width, 1), jnp.int32)
    leading = shape.batch, shape.heads
    shapes = [
        jax.ShapeDtypeStruct((*leading, own.tiles, 1, own.width), jnp.float32)
        if dtype is None
        else jax.ShapeDtypeStruct((*leading, own.padded, shape.features), dtype)
        for dtype in results
    ]
    out_specs = [_spec(shape, own, lambda i, j: i, x) for x in shapes]
    if of_biases:
        sizes = 2 * own.tiles, ROWS, own.width
        shapes.append(jax.ShapeDtypeStruct((shape.heads, *sizes), jnp.float32))
        out_specs.append(pl.BlockSpec((None, *sizes), lambda n, b, i, j: (n, 0, 0, 0)))
    return pl.pallas_call(
        functools.partial(kernel, shape),
        out_shape=shapes,
        grid_spec=pl.GridSpec(
            grid=(shape.heads, shape.batch, own.tiles, listed.tiles),
            in_specs=[specs],
            out_specs=out_specs,
            scratch_shapes=[kept],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary", "arbitrary")
        ),
        cost_estimate=shape.cost(products, (given, shapes)),
        interpret=shape.interpret,
        name=f"dense_{kernel.__name__}",
    )(given)


def _held(shape: Shape, of_keys: bool, inputs: Inputs) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a kernel reads, and which part of it a step holds."""
    own, listed = shape.sides(of_keys)

    def met(i: Any, j: Any) -> Any:
        """The listed tile, or the nearest that is met: what is held already is not fetched."""
        first, end = shape.listed(of_keys, i)
        return jnp.clip(j, jnp.minimum(first, listed.tiles - 1), end - 1)

    names = ("listed", "own") if of_keys else ("own", "listed")
    tokens = _queries(shape, inputs), _keys(shape, inputs)
    given: dict[str, Any] = dict(zip(names, tokens, strict=True))
    specs: dict[str, Any] = {
        "own": jax.tree.map(lambda x: _spec(shape, own, lambda i, j: i, x), given["own"]),
        "listed": jax.tree.map(lambda x: _spec(shape, listed, met, x), given["listed"]),
    }
    if inputs.bias_NC is not None:
        biases = _biases(shape, of_keys, inputs.bias_NC)
        given["biases"] = biases, biases
        specs["biases"] = tuple(
            pl.BlockSpec(
                (None, None, 1, own.width),
                lambda n, b, i, j, k=k: (n, met(i, j) - i + own.tiles - 1 + k, 0, 0),
            )
            for k in range(2)
        )
    if inputs.seeds_BN2 is not None:
        given["seeds"] = table_of(inputs.seeds_BN2)
        specs["seeds"] = pl.BlockSpec(memory_space=pltpu.SMEM)
    return given, specs


def _spec(shape: Shape, side: Side, number: Callable[..., Any], x: Any) -> pl.BlockSpec:
    """One tile of an array: of tokens by head, or of their numbers, by head or not."""
    if x.shape[-2] == side.padded:
        tokens = None, None, side.width, shape.features
        return pl.BlockSpec(tokens, lambda n, b, i, j: (b, n, number(i, j), 0))
    numbers = (*[None] * (x.ndim - 2), 1, side.width)
    of_head = x.ndim == 5
    return pl.BlockSpec(numbers, lambda n, b, i, j: (b, *[n] * of_head, number(i, j), 0, 0))


def _queries(shape: Shape, inputs: Inputs) -> Held:
    """The queries, in whole tiles; padding reads nothing in the backward pass."""
    side = shape.queries
    return Held(
        _by_head(side, inputs.q_BTNH),
        _by_head(side, inputs.dout_BTNH),
        _in_rows(side, inputs.query_segments_BT),
        _in_rows(side, inputs.sums_BNT, -LOWEST),
        _in_rows(side, inputs.means_BNT),
    )


def _keys(shape: Shape, inputs: Inputs) -> Held:
    """The keys and values, in whole tiles."""
    side = shape.keys
    k_BNSH, v_BNSH = (_by_head(side, x) for x in (inputs.k_BSNH, inputs.v_BSNH))
    return Held(k_BNSH, v_BNSH, _in_rows(side, inputs.key_segments_BS))


def _by_head(side: Side, x_BTNH: Array | None) -> Array | None:
    return None if x_BTNH is None else lengthened(x_BTNH, 1, side).swapaxes(1, 2)


def _in_rows(side: Side, x: Array | None, value: float = 0.0) -> Array | None:
    """Numbers of tokens, a row for each tile."""
    if x is None:
        return None
    x = lengthened(x, x.ndim - 1, side, value)
    return x.reshape(*x.shape[:-1], side.tiles, 1, side.width)


def _biases(shape: Shape, of_keys: bool, bias_NC: Array) -> Float[Array, "N K 1 W"]:
    """Biases in parts as wide as tiles, by how far listed tokens are behind own ones."""
    bias_NC = jnp.flip(bias_NC, 1) if of_keys else bias_NC
    bias_NC = lengthened_bias(bias_NC.astype(jnp.float32), shape.queries)
    return bias_NC.reshape(shape.heads, -1, 1, shape.queries.width)
