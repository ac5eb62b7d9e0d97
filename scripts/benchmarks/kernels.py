#!/usr/bin/env python
"""Memory of attention by kernels and by XLA's operations, on an accelerator.

Attention alone with its gradient, one row, 12 heads of width 64, bfloat16: block-sparse as in
BigBird-base (blocks of 64, 3 random blocks, "fixed"), or dense with the bias by distance of
UMT5-base. Compiled ahead of time for one device, which need not be there. "kept" is what lies
between its inputs and results at the worst moment.

Examples:
  .venv/bin/python scripts/benchmarks/kernels.py
  .venv/bin/python scripts/benchmarks/kernels.py --attention umt5 --lengths 1024 4096 16384
  .venv/bin/python scripts/benchmarks/kernels.py --topology h100:1x1 --lengths 4096
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from xformer.layers.attention import AttentionCore, dense_attention
from xformer.layers.block_plan import random_blocks
from xformer.layers.block_rows import attend_in_blocks
from xformer.layers.block_sparse import BlockSparse
from xformer.layers.kernels.block_sparse import attend_by_kernels
from xformer.layers.kernels.dense import attend_densely
from xformer.layers.mask import Mask
from xformer.layers.relative_bias import DistanceBias
from xformer.plan.topology import Topology, avoid_accelerators

BLOCK_SIZE, NUM_RANDOM_BLOCKS, HEADS, WIDTH = 64, 3, 12, 64


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--attention", choices=CASES, default="bigbird")
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
        cells = [
            measured(core, given, length, device) for core, given in CASES[args.attention](length)
        ]
        print(f"| {length:,} | {' | '.join(cells)} |", flush=True)


Case = tuple[AttentionCore, dict[str, jax.ShapeDtypeStruct]]


def bigbird(length: int) -> list[Case]:
    """Block-sparse attention by XLA's operations and by kernels."""
    plan = random_blocks(
        length,
        block_size=BLOCK_SIZE,
        num_random_blocks=NUM_RANDOM_BLOCKS,
        num_heads=HEADS,
        layer=0,
        max_position_embeddings=max(4096, length),
    )
    given = {"random_blocks_NMR": jax.ShapeDtypeStruct(plan.shape, jnp.int32)}
    reach = 1 + int(plan.max())
    return [
        (BlockSparse(BLOCK_SIZE, NUM_RANDOM_BLOCKS, reach, attend), given)
        for attend in (attend_in_blocks, attend_by_kernels)
    ]


def umt5(length: int) -> list[Case]:
    """Dense attention with a bias by distance, by XLA's operations and by kernels."""
    given = {"by_distance_NC": jax.ShapeDtypeStruct((HEADS, 2 * length - 1), jnp.float32)}
    return [(core, given) for core in (dense_attention, attend_densely)]


CASES: dict[str, Callable[[int], list[Case]]] = {"bigbird": bigbird, "umt5": umt5}


def measured(core: AttentionCore, given: dict[str, Any], length: int, device: Any) -> str:
    """What a program keeps, and how long compiling it takes."""
    began = time.perf_counter()
    try:
        memory = compiled(core, given, length, device).memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return "does not fit | "
    outside = memory.argument_size_in_bytes + memory.output_size_in_bytes
    kept = (memory.peak_memory_in_bytes - outside) / 1e6
    return f"{kept:,.0f} MB | {time.perf_counter() - began:.0f} s"


def compiled(core: AttentionCore, given: dict[str, Any], length: int, device: Any) -> Any:
    """The gradients of queries, keys, values and biases of one row, for a device."""

    def gradients(q: Any, k: Any, v: Any, dout: Any, given: dict[str, Any]) -> Any:
        def attend_to(q: Any, k: Any, v: Any, by_distance: Any) -> Any:
            bias = None if by_distance is None else DistanceBias(by_distance)
            mask = Mask(random_blocks_NMR=given.get("random_blocks_NMR"))
            return core(q, k, v, mask=mask, bias=bias).context_BTNH

        return jax.vjp(attend_to, q, k, v, given.get("by_distance_NC"))[1](dout)

    x = jax.ShapeDtypeStruct((1, length, HEADS, WIDTH), jnp.bfloat16)
    place = SingleDeviceSharding(device)
    return jax.jit(gradients, in_shardings=place).lower(x, x, x, x, given).compile()


if __name__ == "__main__":
    main()
