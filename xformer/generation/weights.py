"""Weights as decoding keeps them.

Every new token reads all weights once, so that the time of a token is that of their bytes. Those of
matrices are kept in fewer: as bfloat16, or as int8 with a scale in float32 for each output channel
of a kernel and each row of a table, `weight = scale * integer`. Integers are from -127 to 127 and
the scale is the greatest weight of the channel over 127: no weight moves by more than half a scale.
Vectors (biases, the weights of norms) and the few biases of distances stay as they are.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array, Float, Int8

from xformer.layers.execution import Execution
from xformer.layers.parameter import scale_name

WEIGHTS = ("float32", "bfloat16", "int8")
"""What decoding can keep matrices as; "float32" leaves parameters as they are."""

_LARGEST = 127
_SUMMED = {"kernel": -2, "embedding": -1}  # the axis of a matrix that products sum over, by name
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
        The same tree with matrices of that dtype; beside one of int8 its scales, "kernel_scale" or
        "embedding_scale".

    Raises:
        ValueError: if there are no such weights, or the matrices are kept as int8 already.
    """
    check_weights(weights)
    kept: dict[tuple[str, ...], Any] = {}
    for path, leaf in traverse_util.flatten_dict(dict(params)).items():
        if leaf.dtype == jnp.int8:
            raise ValueError(f"{'/'.join(path)} is int8 already: give the weights it was made of")
        if weights == "float32" or not _is_matrix(path):
            kept[path] = leaf
        elif weights == "bfloat16":
            kept[path] = leaf.astype(jnp.bfloat16)
        else:
            kept[path], scale = quantized(leaf, axis=_SUMMED[path[-1]])
            kept[*path[:-1], scale_name(path[-1])] = scale
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
    kept = traverse_util.flatten_dict(decoding_params(params, weights))
    rounded = {}
    for path, leaf in traverse_util.flatten_dict(dict(params)).items():
        value = kept[path]
        scale = kept.get((*path[:-1], scale_name(path[-1])))
        if scale is not None:
            value = value * jnp.expand_dims(scale, _SUMMED[path[-1]])
        rounded[path] = value.astype(leaf.dtype)
    return traverse_util.unflatten_dict(rounded)


@functools.partial(jax.jit, static_argnames="axis")
def quantized(
    matrix: Float[Array, "*shape"], *, axis: int
) -> tuple[Int8[Array, "*shape"], Float[Array, "*channels"]]:
    """A matrix as integers with a scale for each channel.

    Args:
        matrix: The matrix, or several in a stack.
        axis: The axis that products with it sum over, which scales do not have.

    Returns:
        The integers and the scales, in float32. The scale of a channel that holds no finite number
        is none either.
    """
    matrix = matrix.astype(jnp.float32)
    greatest = jnp.abs(matrix).max(axis=axis, keepdims=True)
    scale = jnp.where(greatest == 0.0, 1.0, greatest / _LARGEST)
    integers = jnp.round(matrix / scale).astype(jnp.int8)
    return integers, jnp.squeeze(scale, axis)


def _is_matrix(path: tuple[str, ...]) -> bool:
    """Whether a parameter is one that every token is multiplied with, or looked up in."""
    return path[-1] in _SUMMED and _DISTANCES not in path
