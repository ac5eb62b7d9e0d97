"""A row by itself, without the axis of the batch.

XLA's CPU compiler takes seven times as long over the gradient of a normalisation whose leading axis
has size one: sums of products over the next axis are then slow (jax 0.10.2).
"""

from collections.abc import Callable

from jaxtyping import Array, Shaped


def by_lone_row(
    function: Callable[[Array], Array], x: Shaped[Array, "*batch D"]
) -> Shaped[Array, "*batch F"]:
    """Applies a function of the last axis; to a row that is alone without the axis of the batch.

    Args:
        function: From (..., D) to (..., F).
        x: Activations of rows.

    Returns:
        The same as the function of `x`.
    """
    if x.ndim > 2 and x.shape[0] == 1:
        y = function(x[0])
        return y.reshape(1, *y.shape)  # the gradient of an indexed None is a sum
    return function(x)
