#!/usr/bin/env python
"""Memory of block-sparse attention by kernels and by XLA's operations, on an accelerator.

Attention alone with its gradient, one row, at the sizes of BigBird-base: 12 heads of width 64,
blocks of 64, 3 random blocks ("fixed"), bfloat16. Compiled ahead of time for one device, which need
not be there. "kept" is what lies between its inputs and results at the worst moment.

Examples:
  .venv/bin/python scripts/benchmarks/kernels.py
  .venv/bin/python scripts/benchmarks/kernels.py --topology h100:1x1 --lengths 4096
"""

import argparse
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from xformer.layers.block_plan import random_blocks
from xformer.layers.block_rows import attend_in_blocks
from xformer.layers.block_sparse import BlockSparse
from xformer.layers.kernels.block_sparse import attend_by_kernels
from xformer.layers.mask import Mask
from xformer.plan.topology import Topology, avoid_accelerators

BLOCK_SIZE, NUM_RANDOM_BLOCKS, HEADS, WIDTH = 64, 3, 12, 64


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--topology", default="v5e:1x1", help="one chip, as `xformer plan` has it")
    parser.add_argument("--lengths", type=int, nargs="*", default=[4096, 16384, 65536])
    return parser.parse_args()


def main() -> None:
    """Compiles both programs at every length, and prints a table as it goes."""
    args = parse_arguments()
    avoid_accelerators()
    device = Topology.parse(args.topology).devices()[0]
    print("| tokens | XLA, kept | XLA, compiled in | kernels, kept | kernels, compiled in |")
    print("|---|---|---|---|---|")
    for length in args.lengths:
        cells = []
        for attend in (attend_in_blocks, attend_by_kernels):
            began = time.perf_counter()
            memory = compiled(attend, length, device).memory_analysis()
            taken = time.perf_counter() - began
            given = memory.argument_size_in_bytes + memory.output_size_in_bytes
            cells.append(f"{(memory.peak_memory_in_bytes - given) / 1e6:,.0f} MB | {taken:.0f} s")
        print(f"| {length:,} | {' | '.join(cells)} |", flush=True)


def compiled(attend: Any, length: int, device: Any) -> Any:
    """The gradients of queries, keys and values of one row, for a device."""
    plan = random_blocks(
        length,
        block_size=BLOCK_SIZE,
        num_random_blocks=NUM_RANDOM_BLOCKS,
        num_heads=HEADS,
        layer=0,
        max_position_embeddings=max(4096, length),
    )
    core = BlockSparse(BLOCK_SIZE, NUM_RANDOM_BLOCKS, 1 + int(plan.max()), attend)
    place = SingleDeviceSharding(device)
    x = jax.ShapeDtypeStruct((1, length, HEADS, WIDTH), jnp.bfloat16, sharding=place)
    table = jax.ShapeDtypeStruct(plan.shape, jnp.int32, sharding=place)

    def gradients(q: Any, k: Any, v: Any, dout: Any, table: Any) -> Any:
        def attend_to(q: Any, k: Any, v: Any) -> Any:
            return core(q, k, v, mask=Mask(random_blocks_NMR=table)).context_BTNH

        return jax.vjp(attend_to, q, k, v)[1](dout)

    return jax.jit(gradients).lower(x, x, x, x, table).compile()


if __name__ == "__main__":
    main()
