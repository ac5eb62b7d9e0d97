"""Weights as decoding keeps them.

Every new token reads all weights once, so that the time of a token is that of their bytes. Those of
matrices are kept in fewer: as bfloat16, or as int8 with a scale in float32 for each output channel
of a kernel and each row of a table, `weight = scale * integer`. Integers are from -127 to 127 and
the scale is the greatest weight of the channel over 127: no weight moves by more than half a scale.
Kernels are kept as (outputs, inputs), as tables are: one token's products then read them in order.
Vectors (biases, the weights of norms) and the few biases of distances stay as they are.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array, Float, Int8

from xformer.layers.execution import Execution
from xformer.layers.parameter import OUTPUTS_FIRST, scale_name

WEIGHTS = ("float32", "bfloat16", "int8")
"""What decoding can keep matrices as; "float32" changes their layout alone."""

_LARGEST = 127
_KEPT = {"kernel": OUTPUTS_FIRST, "embedding": "embedding"}
_DISTANCES = "relative_attention_bias"


def check_weights(weights: str) -> None:
    """Refuses weights that are none of `WEIGHTS`.

    Args:
        weights: What matrices shall be kept as.

    Raises:
        ValueError: naming the legal values.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"weights must be one of {WEIGHTS}, got {weights!r:.80}")


def decoding_execution(execution: Execution, weights: str) -> Execution:
    """How a model decodes with such weights.

    Args:
        execution: How it is computed else.
        weights: One of `WEIGHTS`.

    Returns:
        The same, in bfloat16 for weights of bfloat16: products of other dtypes would need a copy.

    Raises:
        ValueError: if there are no such weights.
    """
    check_weights(weights)
    return dataclasses.replace(execution, dtype=weights) if weights == "bfloat16" else execution


def decoding_params(params: Mapping[str, Any], weights: str) -> dict[str, Any]:
    """Parameters as decoding keeps them; for `apply`, `generate` and its relatives, not training.

    Args:
        params: The parameters.
        weights: One of `WEIGHTS`.

    Returns:
        The same tree with "kernel_OI" in place of "kernel", and beside matrices of int8 their
        scales, "kernel_scale" and "embedding_scale".

    Raises:
        ValueError: if there are no such weights, or the parameters are kept so already.
    """
    check_weights(weights)
    kept: dict[tuple[str, ...], Any] = {}
    for path, leaf in traverse_util.flatten_dict(dict(params)).items():
        if path[-1] == OUTPUTS_FIRST:
            raise ValueError(f"{'/'.join(path)} is kept for decoding: give what it was made of")
        if not _is_matrix(path):
            kept[path] = leaf
            continue
        rows = jnp.swapaxes(leaf, -1, -2) if path[-1] == "kernel" else leaf
        place = *path[:-1], _KEPT[path[-1]]
        if weights == "int8":
            kept[place], kept[*path[:-1], scale_name(path[-1])] = quantized(rows)
        else:
            kept[place] = rows.astype(weights) if weights == "bfloat16" else rows
    return traverse_util.unflatten_dict(kept)


def rounded_params(params: Mapping[str, Any], weights: str) -> Any:
    """Parameters that have the values of `decoding_params` in the tree and dtypes they came in.

    For scoring: what reads parameters as they are trained then finds those that decoding has.

    Args:
        params: The parameters.
        weights: One of `WEIGHTS`.

    Returns:
        The parameters.

    Raises:
        ValueError: if there are no such weights.
    """  # noqa: DOC502
    check_weights(weights)

    def rounded(path: tuple[str, ...], leaf: Array) -> Array:
        if weights == "float32" or not _is_matrix(path):
            return leaf
        if weights == "bfloat16":
            return leaf.astype(weights).astype(leaf.dtype)
        axis = -2 if path[-1] == "kernel" else -1
        integers, scale = quantized(jnp.moveaxis(leaf, axis, -1))
        return jnp.moveaxis(integers * scale[..., None], -1, axis).astype(leaf.dtype)

    flat = traverse_util.flatten_dict(dict(params))
    return traverse_util.unflatten_dict({path: rounded(path, leaf) for path, leaf in flat.items()})


@jax.jit
def quantized(
    rows: Float[Array, "*channels I"],
) -> tuple[Int8[Array, "*channels I"], Float[Array, "*channels"]]:
    """Rows as integers with a scale for each.

    Args:
        rows: A matrix, or several in a stack; products with it sum over the last axis.

    Returns:
        The integers and the scales, in float32. A row with a number that is not finite has no
        finite scale.
    """
    rows = rows.astype(jnp.float32)
    scale = jnp.abs(rows).max(axis=-1, keepdims=True) / _LARGEST
    scale = jnp.where(scale == 0.0, 1.0, scale)
    return jnp.round(rows / scale).astype(jnp.int8), scale[..., 0]


def _is_matrix(path: tuple[str, ...]) -> bool:
    """Whether a parameter is one that every token is multiplied with, or looked up in."""
    return path[-1] in _KEPT and _DISTANCES not in path
