"""Attention by kernels on a GPU, in bfloat16: beside PyTorch's flex_attention, XLA and cuDNN."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from comparing import programs
from comparing.block_attention import (
    BLOCK,
    RANDOM,
    arrays_of,
    counts_of,
    gradient_names,
    heads_of,
    plan_of,
)
from comparing.case import OURS, Case, Goal, Program, Setting, Side

_GRADIENTS_APART = 0.02  # of the largest gradient, for numbers of 8 bits


def sparse_length(length: int, setting: Setting) -> int:
    """Tokens of a row, enough for a plan that names no block twice."""
    return setting.size(length, max(2048, length // 16))


def block_sparse(setting: Setting, *, length: int) -> Program:
    """Block-sparse attention with its gradient, by kernels of xformer."""
    import jax.numpy as jnp

    from xformer.layers.block_sparse import BlockSparse
    from xformer.layers.kernels.block_sparse import attend_by_kernels
    from xformer.layers.mask import Mask

    length = sparse_length(length, setting)
    plan = plan_of(length, setting)
    core = BlockSparse(BLOCK, RANDOM, 1 + int(plan.max()), attend_by_kernels)
    mask = Mask(random_blocks_NMR=jnp.asarray(plan))
    scale = heads_of(setting)[1] ** -0.5
    return gradients_of(
        lambda q, k, v: core((scale * q).astype(q.dtype), k, v, mask=mask).context_BTNH,
        *arrays_of(length, setting),
    )


def flex(setting: Setting, *, length: int) -> Program:
    """The same by `flex_attention`, which is told of each block of keys that is read."""
    import torch
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    length = sparse_length(length, setting)
    device = programs.torch_device(setting)
    counts = counts_of(plan_of(length, setting))
    if counts.max() > 1:
        raise ValueError(
            f"a mask cannot say that a block is read twice, as here with {length} tokens"
        )
    read = torch.tensor((counts > 0).sum(-1)[None], dtype=torch.int32, device=device)
    blocks = np.argsort(counts == 0, axis=-1, kind="stable")[None]  # those that are read come first
    listed = torch.tensor(blocks, dtype=torch.int32, device=device)
    mask = BlockMask.from_kv_blocks(
        torch.zeros_like(read), listed, read, listed, BLOCK_SIZE=BLOCK, seq_lengths=(length, length)
    )
    if setting.platform == "gpu":
        # Searches the tiles that fit into the blocks; those it begins with are larger.
        compiled = torch.compile(flex_attention, mode="max-autotune-no-cudagraphs")
        attend = functools.partial(compiled, block_mask=mask)
    else:  # it has no gradient there
        allowed = mask.to_dense().bool().repeat_interleave(BLOCK, -2).repeat_interleave(BLOCK, -1)
        attend = functools.partial(
            torch.nn.functional.scaled_dot_product_attention, attn_mask=allowed
        )
    arrays = torch.tensor(arrays_of(length, setting)).transpose(2, 3).to(device, torch.bfloat16)
    q, k, v = (array.contiguous().requires_grad_() for array in arrays)

    def call() -> Any:
        context: Any = attend(q, k, v)
        return torch.autograd.grad((context.float() ** 2).sum(), (q, k, v))

    def outputs(found: Any) -> dict[str, Any]:
        return {
            name: one.float().transpose(1, 2)
            for name, one in zip(gradient_names(3), found, strict=True)
        }

    program = programs.torch_program(call, outputs, gradient=True)
    program.units = length
    return program


def with_bias(setting: Setting, *, length: int, core: str) -> Program:
    """UMT5's attention with its bias, and the gradients of both.

    Args:
        setting: What it is built for.
        length: Tokens of a row.
        core: "pallas" for the bias inside, "xla" or "cudnn" for all of it.

    Returns:
        The program.
    """
    import jax

    from xformer.layers.attention import dense_attention
    from xformer.layers.kernels.dense import attend_densely
    from xformer.layers.mask import Mask
    from xformer.layers.relative_bias import DistanceBias

    length = setting.size(length, length // 16)
    draws = np.random.default_rng(1)
    biases = draws.standard_normal((heads_of(setting)[0], 2 * length - 1), np.float32)

    def by_cudnn(q: Any, k: Any, v: Any, biases: Any) -> Any:
        whole = DistanceBias(biases).materialize(length).astype(q.dtype)
        way = "cudnn" if setting.platform == "gpu" else "xla"
        return jax.nn.dot_product_attention(q, k, v, whole, scale=1.0, implementation=way)

    def by_core(q: Any, k: Any, v: Any, biases: Any) -> Any:
        attend = attend_densely if core == "pallas" else dense_attention
        return attend(q, k, v, mask=Mask(), bias=DistanceBias(biases)).context_BTNH

    return gradients_of(
        by_cudnn if core == "cudnn" else by_core,
        *arrays_of(length, setting),
        biases,
    )


def gradients_of(attend: Callable[..., Any], q: Any, k: Any, v: Any, *biases: Any) -> Program:
    """The gradients of the sum of squares of contexts, in bfloat16.

    Args:
        attend: Attention of queries, keys, values and biases.
        q: Queries, (1, T, N, H).
        k: Keys.
        v: Values.
        *biases: Biases, float32; none for none.

    Returns:
        The program, whose units are tokens.
    """
    import jax
    import jax.numpy as jnp

    arrays = (*(jnp.asarray(one, jnp.bfloat16) for one in (q, k, v)), *biases)

    def loss(*arrays: Any) -> Any:
        return (attend(*arrays).astype(jnp.float32) ** 2).sum()

    names = gradient_names(len(arrays))
    return programs.jax_program(
        jax.grad(loss, tuple(range(len(arrays)))),
        *arrays,
        outputs=lambda found: {
            name: one.astype(jnp.float32) for name, one in zip(names, found, strict=True)
        },
        units=q.shape[1],
    )


def sparse_case(length: int) -> Case:
    """Block-sparse attention at one length."""
    return Case(
        f"bigbird-kernels-{length}",
        f"BigBird attention forward+backward, {length:,} tokens, kernels, bfloat16",
        {
            OURS: Side(functools.partial(block_sparse, length=length)),
            "flex_attention": Side(functools.partial(flex, length=length)),
        },
        (Goal("flex_attention", 1.0, 1.5),),
        tolerance=_GRADIENTS_APART,
        dtype="bfloat16",
        platform="gpu",
        note="12 heads of width 64, blocks of 64, 3 random ones, which both are told of.",
    )


def bias_sides(length: int, *cores: str) -> dict[str, Side]:
    """Attention with a bias in several ways."""
    names = {"pallas": OURS, "xla": "XLA", "cudnn": "cuDNN"}
    return {
        names[one]: Side(functools.partial(with_bias, length=length, core=one)) for one in cores
    }


_LONG, _BRIEF = 16384, 4096
_OTHER = f"xformer, {_BRIEF:,} tokens"

CASES = [
    *(sparse_case(length) for length in (4096, 16384, 65536)),
    Case(
        f"umt5-kernels-{_BRIEF}",
        f"UMT5 attention with bias forward+backward, {_BRIEF:,} tokens, kernels, bfloat16",
        bias_sides(_BRIEF, "pallas", "xla", "cudnn"),
        (Goal("XLA", 1.5, 2.5), Goal("cuDNN", 1.5, 2.5)),
        tolerance=_GRADIENTS_APART,
        dtype="bfloat16",
        platform="gpu",
        note="12 heads of width 64; XLA and cuDNN are given the bias as heads x T x S.",
    ),
    Case(
        f"umt5-kernels-{_LONG}",
        f"UMT5 attention with bias forward+backward, {_LONG:,} tokens, kernels, per token",
        {
            **bias_sides(_LONG, "pallas"),
            _OTHER: Side(functools.partial(with_bias, length=_BRIEF, core="pallas"), another=True),
        },
        (Goal(_OTHER, 1 / 1.15, 1.0, measure="temporary"),),
        tolerance=_GRADIENTS_APART,
        dtype="bfloat16",
        platform="gpu",
        note="Memory that is linear in the length is a ratio of 1.",
    ),
]
