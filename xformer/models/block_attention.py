"""How an input of a family with block-sparse attention attends: decided by its length alone."""

import dataclasses
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Int

from xformer.layers.attention import AttentionCore
from xformer.layers.block_plan import is_sparse, random_blocks
from xformer.layers.block_reading import check_width
from xformer.layers.block_sparse import BlockSparse
from xformer.layers.dense_cores import dense_core
from xformer.layers.execution import Execution

ATTENTION_TYPES = ("block_sparse", "original_full")
RANDOM_BLOCKS = ("hf_eval", "fixed")


@runtime_checkable
class BlockConfig(Protocol):
    """The config fields that the choice depends on; see the families' configs for their meaning."""

    attention_type: str
    block_size: int
    num_random_blocks: int
    random_blocks: str
    num_attention_heads: int
    num_hidden_layers: int
    max_position_embeddings: int


class Choice(NamedTuple):
    """How the layers attend.

    Attributes:
        core: What combines queries, keys and values.
        plans: The random blocks of each layer; None where the core needs none, for there are none
            or all of them are the first block.
        multiple: What the number of tokens must be padded to a multiple of; 1 for dense attention.
    """

    core: AttentionCore
    plans: list[Int[Array, "N M R"] | None]
    multiple: int


def check_kernels(config: Any, execution: Execution) -> None:
    """Checks that what shall compute attention can compute that of an architecture.

    Args:
        config: A config of any family.
        execution: How the model is computed.

    Raises:
        ValueError: naming the key to change.
    """
    name = type(config).__name__
    reads_blocks = getattr(config, "attention_type", None) == "block_sparse"
    if execution.attention == "pallas" and reads_blocks:
        check_width(config.block_size, f"{name}.block_size")
    if execution.attention != "cudnn":
        return
    rates = ("attention_dropout", "attention_probs_dropout_prob")
    rate = next((key for key in rates if getattr(config, key, 0.0) > 0.0), None)
    if hasattr(config, "relative_attention_num_buckets"):
        lacks = f"biases by distance, which the {name} describes"
    elif reads_blocks:
        lacks = f"block-sparse attention, got {name}.attention_type='block_sparse'"
    elif rate is not None:
        lacks = f"dropout of probabilities; set {name}.{rate} to 0 (got {getattr(config, rate)})"
    elif config.head_dim % 8 or config.head_dim > 128:
        lacks = f"heads whose width is no multiple of 8 up to 128, got {config.head_dim}"
    else:
        return
    raise ValueError(
        f'Execution.attention="cudnn" does not compute {lacks}; or set Execution.attention to '
        '"pallas" or "xla"'
    )


def choose_attention(config: BlockConfig, length: int, execution: Execution) -> Choice:
    """Chooses dense attention for what is too short to be sparse, and blocks for the rest.

    Args:
        config: The architecture.
        length: Number of keys, padding to whole blocks not counted.
        execution: How the model is computed.

    Returns:
        The core, and what it needs.
    """
    plans: list[Array | None] = [None] * config.num_hidden_layers
    reach = None
    sparse = is_sparse(length, config.block_size, config.num_random_blocks)
    if config.attention_type == "original_full" or not sparse:
        return Choice(dense_core(execution), plans, 1)
    if config.random_blocks == "fixed" and config.num_random_blocks:
        tables = [
            random_blocks(
                length + -length % config.block_size,
                block_size=config.block_size,
                num_random_blocks=config.num_random_blocks,
                num_heads=config.num_attention_heads,
                layer=layer,
                max_position_embeddings=config.max_position_embeddings,
            )
            for layer in range(config.num_hidden_layers)
        ]
        reach = 1 + max(int(table_NMR.max()) for table_NMR in tables)
        plans = [jnp.asarray(table_NMR) for table_NMR in tables]
    core = BlockSparse(config.block_size, config.num_random_blocks, reach)
    if execution.attention == "pallas":
        # Not loaded where it is not asked for.
        from xformer.layers.kernels.block_sparse import attend_by_kernels

        core = dataclasses.replace(core, attend=attend_by_kernels)
    return Choice(core, plans, config.block_size)
