"""Names of weights in published checkpoints, derived from our parameter paths.

Our trees carry the published Flax names, so one rule covers a family: the path joined by dots, with
`kernel`, `scale` and `embedding` called `weight`, and kernels transposed.
"""

from typing import NamedTuple

import numpy as np

_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}


class Weight(NamedTuple):
    """Where a parameter lives in a published checkpoint.

    Attributes:
        name: Name of the tensor.
        transposed: Whether the tensor is the transpose of our array.
    """

    name: str
    transposed: bool


def weight(path: tuple[str, ...]) -> Weight:
    """The published place of the parameter at `path` (of a looped stack)."""
    *modules, leaf = path
    return Weight(".".join([*modules, _LEAVES[leaf]]), leaf == "kernel")


def to_published(path: tuple[str, ...], value: np.ndarray) -> tuple[str, np.ndarray]:
    """The published name and layout of a parameter."""
    name, transposed = weight(path)
    return name, np.ascontiguousarray(value.T) if transposed else value
