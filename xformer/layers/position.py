"""Position encodings."""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


@functools.lru_cache(maxsize=8)
def sinusoidal_table(
    rows: int, features: int, zero_row: int | None = None
) -> Float[np.ndarray, "P D"]:
    """The sinusoids of Vaswani et al., 2017 (section 3.5), laid out as [all sines | all cosines].

    Built on the host in float32 step by step, because the published weights were trained with
    these roundings and accelerators compute large sines differently. Only the exponential is taken
    in double precision before it is rounded: NumPy's own float32 one is off by a unit in the last
    place, which late positions multiply to 1e-4.

    Args:
        rows: Number of positions.
        features: Width; an odd width ends in a column of zeros.
        zero_row: Row to clear, if any (the padding row of fairseq models).

    Returns:
        A float32 table.
    """
    half = features // 2
    step = np.float32(np.log(10000.0) / max(half - 1, 1))
    exponents = np.arange(half, dtype=np.float32) * -step
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles_PD = np.arange(rows, dtype=np.float32)[:, None] * frequencies[None, :]
    table_PD = np.zeros((rows, features), np.float32)
    table_PD[:, :half] = np.sin(angles_PD)
    table_PD[:, half : 2 * half] = np.cos(angles_PD)
    if zero_row is not None and zero_row < rows:
        table_PD[zero_row] = 0.0
    table_PD.setflags(write=False)
    return table_PD


def lookup_positions(
    table_PD: Float[np.ndarray, "P D"], rows_BT: Int[Array, "B T"]
) -> Float[Array, "B T D"]:
    """Rows of a constant table; a row outside it gives NaN rather than a wrong position."""
    return jnp.asarray(table_PD).at[rows_BT].get(mode="fill", wrap_negative_indices=False)
