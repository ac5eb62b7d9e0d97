"""How a model is computed, as opposed to what it is."""

from dataclasses import dataclass

import jax.numpy as jnp

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}
LAYER_MODES = ("loop", "scan")
REMAT_POLICIES = ("none", "minimal", "full")


@dataclass(frozen=True)
class Execution:
    """Choices that change speed and memory but not the meaning of a model.

    Parameters are always float32; logits, softmax and normalisation statistics too.

    Attributes:
        dtype: Compute dtype of activations: "float32", "bfloat16" or "float16".
        layers: "loop" unrolls the layers in the program (fastest step), "scan" compiles one layer
            and iterates it (compile time does not grow with depth).
        remat: What the backward pass recomputes instead of storing: "none" (nothing), "minimal"
            (everything but matrix products with weights), "full" (the whole layer).
    """

    dtype: str = "float32"
    layers: str = "loop"
    remat: str = "none"

    def __post_init__(self) -> None:
        """Refuses values outside the documented ones.

        Raises:
            ValueError: naming the key and its legal values.
        """
        for key, legal in (
            ("dtype", tuple(DTYPES)),
            ("layers", LAYER_MODES),
            ("remat", REMAT_POLICIES),
        ):
            if getattr(self, key) not in legal:
                raise ValueError(
                    f"Execution.{key} must be one of {legal}, got {getattr(self, key)!r}"
                )

    @property
    def compute_dtype(self) -> jnp.dtype:
        """The dtype of activations."""
        return jnp.dtype(DTYPES[self.dtype])
