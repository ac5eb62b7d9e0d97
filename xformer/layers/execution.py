"""How a model is computed, as opposed to what it is."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}
LAYER_MODES = ("loop", "scan")
REMAT_POLICIES = ("none", "minimal", "full", "offload")
HOST_MEMORY = "pinned_host"
"""The kind of memory, as JAX names it, that the policy "offload" moves activations to."""
ATTENTION_CORES = ("xla", "pallas", "cudnn")
LARGE_VOCABULARY = 100_000
CHUNK = 8192


@dataclass(frozen=True)
class Execution:
    """Choices that change speed and memory but not the meaning of a model.

    Parameters are always float32; logits, softmax and normalisation statistics too.

    Attributes:
        dtype: Compute dtype of activations: "float32", "bfloat16" or "float16".
        layers: "loop" unrolls the layers in the program (fastest step), "scan" compiles one layer
            and iterates it (compile time does not grow with depth).
        remat: What the backward pass recomputes instead of storing: "none" (nothing), "minimal"
            (everything but matrix products with weights), "full" (the whole layer), "offload" (the
            whole layer too, and what enters it waits in the host's memory, so that the device holds
            activations of hardly more than the layer that it computes; for "scan" alone, since
            compilers bring them back at once where the layers are unrolled).
        attention: What computes attention: "xla" (operations that XLA compiles for any device),
            "pallas" (kernels of our own for TPUs and GPUs, in memory linear in the length; CPUs
            interpret them, slowly) or "cudnn" (cuDNN on NVIDIA GPUs, for 16-bit dtypes, dense
            attention without biases by distance, and no dropout of probabilities).
        vocabulary_chunk: Most tokens of the vocabulary that the loss scores at once, on each device
            that has a share of it; 0 scores all at once. Chunks take far less memory, and a fourth
            product with the table where a loss on all scores takes three. A device that has no more
            than 2**25 scores keeps them, and computes them at once where it has whole rows of the
            table. None is 8192 for vocabularies of at least 100,000 tokens, and 0 for smaller ones.
            A CPU scores fewer at once than it may, as many as its cache holds.
    """

    dtype: str = "float32"
    layers: str = "loop"
    remat: str = "none"
    attention: str = "xla"
    vocabulary_chunk: int | None = None

    def __post_init__(self) -> None:
        """Refuses values outside the documented ones.

        Raises:
            ValueError: naming the key and its legal values.
        """
        for key, legal in (
            ("dtype", tuple(DTYPES)),
            ("layers", LAYER_MODES),
            ("remat", REMAT_POLICIES),
            ("attention", ATTENTION_CORES),
        ):
            if getattr(self, key) not in legal:
                raise ValueError(
                    f"Execution.{key} must be one of {legal}, got {getattr(self, key)!r}"
                )
        if self.remat == "offload" and self.layers != "scan":
            raise ValueError(
                "Execution.remat='offload' needs Execution.layers='scan', got "
                f"{self.layers!r}; set Execution.layers = 'scan' or Execution.remat = 'full'"
            )
        if self.attention == "cudnn" and self.dtype == "float32":
            raise ValueError(
                "Execution.attention='cudnn' needs 16-bit numbers, got Execution.dtype='float32'; "
                "set Execution.dtype = 'bfloat16' or Execution.attention = 'pallas'"
            )
        if self.vocabulary_chunk is not None and self.vocabulary_chunk < 0:
            raise ValueError(
                "Execution.vocabulary_chunk must be None, 0 or a number of tokens, got "
                f"{self.vocabulary_chunk}"
            )

    @property
    def compute_dtype(self) -> jnp.dtype:
        """The dtype of activations."""
        return jnp.dtype(DTYPES[self.dtype])

    def looped(self) -> "Execution":
        """The same with unrolled layers, for what has no backward pass."""
        return dataclasses.replace(self, layers="loop", remat="none")

    def on(self, platform: str) -> "Execution":
        """The same, with attention by XLA where nothing faster runs on devices of a platform."""
        runs = {"cudnn": ("gpu", "cuda"), "pallas": ("gpu", "cuda", "tpu")}
        if platform in runs.get(self.attention, (platform,)):
            return self
        return dataclasses.replace(self, attention="xla")

    def check_devices(self, devices: Iterable[Any]) -> None:
        """Checks that devices can do what is asked for.

        Args:
            devices: The devices of a run, or those of a topology that is compiled for.

        Raises:
            ValueError: if activations shall wait in memory that the devices lack, or attention
                shall be computed by what does not run there; names the key.
        """
        devices = list(devices)
        if self.attention == "cudnn" and devices[0].platform not in ("gpu", "cuda"):
            raise ValueError(
                "Execution.attention='cudnn' needs NVIDIA GPUs, got devices of the platform "
                f"{devices[0].platform!r}; set Execution.attention = 'pallas' or 'xla'"
            )
        if self.attention == "pallas" and (self.dtype, devices[0].platform) == ("float16", "tpu"):
            raise ValueError(
                "Execution.attention='pallas' has no kernels of Execution.dtype='float16' for "
                "TPUs; set Execution.dtype = 'bfloat16' or Execution.attention = 'xla'"
            )
        if self.remat != "offload":
            return
        # Devices of other processes, and GPUs that are compiled for, do not say what they have.
        found = {memory.kind for device in devices for memory in device.addressable_memories()}
        if found and HOST_MEMORY not in found:
            raise ValueError(
                f"Execution.remat='offload' needs memory of the kind {HOST_MEMORY!r}, and devices "
                f"of the platform {devices[0].platform!r} have {sorted(found)}; set "
                "Execution.remat = 'full'"
            )

    def chunk_of(self, vocab_size: int) -> int | None:
        """How many tokens of a vocabulary of this size the loss scores at once; None for all."""
        if self.vocabulary_chunk is None:
            return CHUNK if vocab_size >= LARGE_VOCABULARY else None
        return self.vocabulary_chunk or None
