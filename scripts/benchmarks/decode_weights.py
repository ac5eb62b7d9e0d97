#!/usr/bin/env python
"""Time of a new token and bytes of weights as decoding can keep them, at the size of XGLM-564M.

Random weights, greedy. A token is the difference of writing 32 and 8 tokens
by one compiled program, over 24, the median of some turns: variants take turns, so that whatever
else the machine does meets all of them. "of the limit" is the time that reading the weights once
would take at the speed of products of a matrix and a vector here, through that of the token. "kept"
is what the program sets aside beside its inputs and outputs. Weights of int8 are multiplied with
bfloat16.

With --products it times the matrix products of a token's layers alone: queries, keys and values as
three products or one, kernels as (inputs, outputs) or (outputs, inputs). With --topology it
compiles for one accelerator that need not be there, and says the bytes.

Examples:
  .venv/bin/python scripts/benchmarks/decode_weights.py
  .venv/bin/python scripts/benchmarks/decode_weights.py --layers 4 --prompt 1024
  .venv/bin/python scripts/benchmarks/decode_weights.py --products
  .venv/bin/python scripts/benchmarks/decode_weights.py --topology v5e:1x1 --layers 4
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.core import meta
from jax.sharding import SingleDeviceSharding

from xformer import XGLMConfig
from xformer.generation.decode import compiled_search
from xformer.generation.decoders import Prompts
from xformer.generation.decoding import Decoding
from xformer.generation.search import Limits
from xformer.generation.weights import WEIGHTS, decoding_execution, decoding_params
from xformer.layers.execution import Execution
from xformer.layers.heads import CausalLM
from xformer.layers.linear import multiply_kept
from xformer.models import build
from xformer.plan.topology import Topology, avoid_accelerators

ROOM, FEW = 32, 8
COMPILED = (
    ("float32", "float32"),
    ("float32", "bfloat16"),
    ("bfloat16", "bfloat16"),
    ("int8", "bfloat16"),
)
"""Weights and the dtype that is computed with, for accelerators."""


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--vocab-size", type=int, default=256008)
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--prompt", type=int, default=32, help="tokens that are read before")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--products", action="store_true", help="the products of the layers alone")
    parser.add_argument("--topology", help="one chip to compile for, as `xformer plan` has it")
    return parser.parse_args()


def main() -> None:
    """Measures, or compiles, and prints a table."""
    args = parse_arguments()
    if args.topology:
        compile_all(args)
    elif args.products:
        time_products(args)
    else:
        time_tokens(args)


def module_of(args: argparse.Namespace, weights: str, dtype: str = "float32") -> Any:
    """The model for some weights."""
    config = XGLMConfig(num_layers=args.layers, vocab_size=args.vocab_size)
    return build(config, CausalLM(), decoding_execution(Execution(dtype=dtype), weights))


def prompts_and_limits(rows: int, length: int, new: int) -> tuple[Prompts, Limits]:
    """What is written to, and how many tokens; no row ends early."""
    ids_BP = jax.random.randint(jax.random.key(rows), (rows, length), 10, 1000)
    limits = Limits(*(jnp.asarray(number, jnp.int32) for number in (0, new, new)))
    return Prompts(ids_BP, jnp.ones_like(ids_BP)), limits


def draw(module: Any) -> Any:
    """Random parameters."""
    ids = jnp.zeros((1, 2), jnp.int32)
    return meta.unbox(jax.jit(module.init)(jax.random.key(0), ids)["params"])


def time_tokens(args: argparse.Namespace) -> None:
    """Prints what a token takes with each kind of weights."""
    params = draw(module_of(args, "float32"))
    kept = {weights: decoding_params(params, weights) for weights in WEIGHTS}
    del params
    print("| rows | weights | bytes of weights | kept | a token | to float32 | of the limit |")
    print("|---|---|---|---|---|---|---|")
    for rows in args.rows:
        runs: dict[str, Callable[[], Any]] = {"limit": read_once(kept["float32"])}
        size = {}
        for weights, tree in kept.items():
            module = module_of(args, weights, "float32" if weights == "float32" else "bfloat16")
            prompts, few = prompts_and_limits(rows, args.prompt, FEW)
            many = prompts_and_limits(rows, args.prompt, ROOM)[1]
            search = compiled_search(module, ROOM, Decoding.of(module.config))
            program = search.lower(tree, prompts, few, jax.random.key(0)).compile()
            size[weights] = program.memory_analysis().temp_size_in_bytes
            for name, limits in (("few", few), ("many", many)):
                given = (tree, prompts, limits, jax.random.key(0))
                runs[f"{weights} {name}"] = functools.partial(program, *given)
        seconds = times(runs, args.turns)
        token = {
            weights: statistics.median(
                (many - few) / (ROOM - FEW)
                for many, few in zip(
                    seconds[f"{weights} many"], seconds[f"{weights} few"], strict=True
                )
            )
            for weights in WEIGHTS
        }
        speed = nbytes(kept["float32"]) / statistics.median(seconds["limit"])
        for weights in WEIGHTS:
            limit = nbytes(kept[weights]) / speed
            print(
                f"| {rows} | {weights} | {nbytes(kept[weights]) / 1e6:,.0f} MB "
                f"| {size[weights] / 1e6:,.0f} MB | {1e3 * token[weights]:.1f} ms "
                f"| {token['float32'] / token[weights]:.2f} | {limit / token[weights]:.0%} |",
                flush=True,
            )


def read_once(params: Any) -> Callable[[], Any]:
    """A program that reads every matrix once, in products with a vector."""
    matrices = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 2]
    multiply = jax.jit(lambda matrices, x: [matrix @ x[: matrix.shape[1]] for matrix in matrices])
    x = jnp.ones(max(matrix.shape[1] for matrix in matrices))
    return lambda: multiply(matrices, x)


def nbytes(params: Any) -> int:
    """Bytes of parameters, scales included."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def time_products(args: argparse.Namespace) -> None:
    """Prints what the products of a token take in every layout."""
    print("| rows | weights | q, k, v | kernels | a token | to three of (in, out) |")
    print("|---|---|---|---|---|---|")
    for dtype in ("float32", "bfloat16"):
        for rows in args.rows:
            forms = [(fused, out_first) for out_first in (False, True) for fused in (False, True)]
            runs = {form: products(args.layers, rows, dtype, *form) for form in forms}
            taken = {
                form: statistics.median(all_seconds) / ROOM
                for form, all_seconds in times(runs, args.turns).items()
            }
            for fused, out_first in forms:
                seconds = taken[fused, out_first]
                print(
                    f"| {rows} | {dtype} | {'one' if fused else 'three'} "
                    f"| {'(out, in)' if out_first else '(in, out)'} | {1e3 * seconds:.1f} ms "
                    f"| {taken[False, False] / seconds:.2f} |",
                    flush=True,
                )


def products(layers: int, rows: int, dtype: str, fused: bool, out_first: bool) -> Callable[[], Any]:
    """A program with the products of `ROOM` tokens."""
    shapes = [(1024, 3072)] if fused else [(1024, 1024)] * 3
    shapes = [*shapes, (1024, 1024), (1024, 4096), (4096, 1024)]
    key = jax.random.key(0)
    weights = [
        [jax.random.normal(key, shape[:: -1 if out_first else 1], dtype) for shape in shapes]
        for _ in range(layers)
    ]

    def multiply(x_BD: jax.Array, kernel: jax.Array) -> jax.Array:
        if out_first:
            return multiply_kept(x_BD, kernel).astype(dtype)
        return jnp.matmul(x_BD, kernel, preferred_element_type=jnp.float32).astype(dtype)

    def normed(x_BD: jax.Array) -> jax.Array:
        return jax.nn.standardize(x_BD.astype(jnp.float32)).astype(dtype)

    def token(weights: Any, x_BD: jax.Array) -> jax.Array:
        for *qkv, out, up, down in weights:
            context_BD = jnp.concatenate([multiply(x_BD, kernel) for kernel in qkv], axis=1)
            context_BD = sum(jnp.split(context_BD, 3, axis=1))
            x_BD = normed(multiply(context_BD, out))
            x_BD = normed(multiply(jax.nn.relu(multiply(x_BD, up)), down))
        return x_BD

    @jax.jit
    def run(weights: Any, x_BD: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, ROOM, lambda _, x_BD: token(weights, x_BD), x_BD)

    x_BD = jnp.ones((rows, 1024), dtype)
    return lambda: run(weights, x_BD)


def times(runs: Mapping[Any, Callable[[], Any]], turns: int) -> dict[Any, list[float]]:
    """Seconds of every turn of each program, after one that is not counted."""
    seconds: dict[Any, list[float]] = {name: [] for name in runs}
    for turn in range(1 + turns):
        for name, run in runs.items():
            began = time.perf_counter()
            jax.block_until_ready(run())
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def compile_all(args: argparse.Namespace) -> None:
    """Prints the bytes of the program of each kind of weights on an accelerator."""
    avoid_accelerators()
    place = SingleDeviceSharding(Topology.parse(args.topology).devices()[0])
    print("| rows | weights | computed in | bytes of weights | kept |")
    print("|---|---|---|---|---|")
    for rows in args.rows:
        for weights, dtype in COMPILED:
            module = module_of(args, weights, dtype)
            params = jax.eval_shape(lambda module=module: draw(module))
            params = jax.eval_shape(lambda p, w=weights: decoding_params(p, w), params)
            given = (params, *prompts_and_limits(rows, args.prompt, ROOM), jax.random.key(0))
            shapes = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), given
            )
            search = compiled_search(module, ROOM, Decoding.of(module.config))
            memory = search.lower(*shapes).compile().memory_analysis()
            size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
            print(
                f"| {rows} | {weights} | {dtype} | {size / 1e6:,.0f} MB "
                f"| {memory.temp_size_in_bytes / 1e6:,.0f} MB |",
                flush=True,
            )


if __name__ == "__main__":
    main()
