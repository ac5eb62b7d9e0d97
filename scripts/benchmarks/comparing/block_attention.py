"""Block-sparse attention alone beside the published Flax function, and dense attention."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from comparing import programs
from comparing.case import OURS, Case, Goal, Program, Setting, Side

BLOCK, RANDOM = 64, 3
_SHOWN = (0, 5, -1)  # blocks of queries whose contexts are computed by definition


def heads_of(setting: Setting) -> tuple[int, int]:
    """Heads, and the width of each."""
    return setting.size((12, 64), (2, 16))


def arrays_of(length: int, setting: Setting) -> np.ndarray:
    """Queries, keys and values: (3, 1, length, heads, width)."""
    shape = (3, 1, length, *heads_of(setting))
    return 0.5 * np.random.default_rng(0).standard_normal(shape, np.float32)


def plan_of(length: int, setting: Setting) -> np.ndarray:
    """The random blocks of the lowest layer."""
    from xformer.layers.block_plan import random_blocks

    return random_blocks(
        length,
        block_size=BLOCK,
        num_random_blocks=RANDOM,
        num_heads=heads_of(setting)[0],
        layer=0,
        max_position_embeddings=max(4096, length),
    )


def core_of(length: int, setting: Setting, *, drawn: bool) -> Callable:
    """Attention of xformer, as its models do it."""
    import jax.numpy as jnp

    from xformer.layers.block_sparse import BlockSparse
    from xformer.layers.mask import Mask

    plan = plan_of(length, setting) if drawn else None
    core = BlockSparse(BLOCK, RANDOM, None if plan is None else 1 + int(plan.max()))
    mask = Mask(random_blocks_NMR=None if plan is None else jnp.asarray(plan))
    scale = heads_of(setting)[1] ** -0.5
    return lambda q, k, v: core(scale * q, k, v, mask=mask).context_BTNH


def dense_core(length: int, setting: Setting, *, drawn: bool) -> Callable:
    """Dense attention of xformer."""
    from xformer.layers.attention import dense_attention
    from xformer.layers.mask import Mask

    del length, drawn
    scale = heads_of(setting)[1] ** -0.5
    return lambda q, k, v: dense_attention(scale * q, k, v, mask=Mask()).context_BTNH


def ours(
    setting: Setting, *, length: int, drawn: bool, backward: bool, core: Callable = core_of
) -> Program:
    """Attention of xformer, forward or with its gradient."""
    attend = core(length, setting, drawn=drawn)
    arrays = arrays_of(length, setting)
    if not backward:
        return programs.jax_program(
            attend, *arrays, outputs=lambda out: {"context": out}, units=length
        )
    return programs.jax_program(
        gradient_of(attend),
        *arrays,
        outputs=lambda found: dict(zip(gradient_names(3), found, strict=True)),
        units=length,
    )


def gradient_names(count: int) -> list[str]:
    """Names of the gradients of queries, keys, values and biases, or of the first of them."""
    return [f"gradient of {one}" for one in ("queries", "keys", "values", "biases")[:count]]


def gradient_of(attend: Callable) -> Callable:
    """The gradients of the sum of squares of contexts."""
    import jax

    return jax.grad(lambda q, k, v: (attend(q, k, v) ** 2).sum(), (0, 1, 2))


def published(setting: Setting, *, length: int, drawn: bool, backward: bool) -> Program:
    """The published function, on arrays in the order of axes that it wants."""
    import jax.numpy as jnp
    from transformers import BigBirdConfig
    from transformers.models.big_bird.modeling_flax_big_bird import (
        FlaxBigBirdBlockSparseAttention,
    )

    heads, width = heads_of(setting)
    plan = plan_of(length, setting) if drawn else None

    class OnPlan(FlaxBigBirdBlockSparseAttention):
        """Takes the plan that it is given, one head after the other, instead of drawing one."""

        def _bigbird_block_rand_mask(self, *args: Any, **kwargs: Any) -> Any:
            return next(rows)[1:-1]

    config = BigBirdConfig(
        num_attention_heads=heads,
        hidden_size=heads * width,
        block_size=BLOCK,
        num_random_blocks=RANDOM,
    )
    module = (OnPlan if drawn else FlaxBigBirdBlockSparseAttention)(config)
    blocked, band, rows_mask, columns_mask = module.create_masks_for_block_sparse_attn(
        jnp.ones((1, length)), BLOCK
    )

    def attend(q: Any, k: Any, v: Any) -> Any:
        nonlocal rows
        rows = iter(plan if plan is not None else ())
        context, _ = module.apply(
            {},
            q,
            k,
            v,
            band,
            rows_mask,
            columns_mask,
            blocked,
            blocked,
            heads,
            width,
            deterministic=True,
            method="bigbird_block_sparse_attention",
        )
        return context.reshape(1, length, heads, width)

    rows: Any = iter(())
    arrays = arrays_of(length, setting).swapaxes(2, 3)
    if not backward:
        return programs.jax_program(
            attend, *arrays, outputs=lambda out: {"context": out}, units=length
        )
    return programs.jax_program(
        gradient_of(attend),
        *arrays,
        outputs=lambda found: {
            name: one.swapaxes(1, 2) for name, one in zip(gradient_names(3), found, strict=True)
        },
        units=length,
    )


def case(length: int, *, drawn: bool, backward: bool) -> Case:
    """Attention at one length."""
    given = {"length": length, "drawn": drawn, "backward": backward}
    sides = {
        OURS: Side(functools.partial(ours, **given)),
        "Flax": Side(functools.partial(published, **given)),
        "xformer, dense": Side(functools.partial(ours, **given, core=dense_core), another=True),
    }
    time, aim = {
        (False, True): (2.3, 3.0),
        (False, False): (2.9, 4.0),
        (True, True): (1.5, 2.2),
        (True, False): (2.0, 3.0),
    }[backward, drawn]
    goals = (Goal("Flax", time, aim),)
    if backward:
        goals += (Goal("Flax", 6.0, 10.0, measure="temporary"),)
    goals += (Goal("xformer, dense"),)
    kind, way = ("random", "random blocks") if drawn else ("first", "evaluation mode")
    what = ("gradient", "forward+backward") if backward else ("forward", "forward")
    return Case(
        f"bigbird-attention-{what[0]}-{kind}-{length}",
        f"BigBird attention {what[1]} {length:,}, {way}",
        sides,
        goals,
        note="12 heads of width 64, blocks of 64, 3 random ones; dense attention is another thing.",
    )


def at_length(setting: Setting, *, length: int) -> Program:
    """Attention with random blocks and its gradient, of which some rows are compared."""
    length = setting.size(length, length // 4)
    program = ours(setting, length=length, drawn=True, backward=True)

    def shown() -> dict[str, np.ndarray]:
        queries = programs.as_numpy({"all": program.run()[0]})["all"]
        return {f"gradient of queries, {length}": shown_rows(queries)}

    program.outputs = shown
    return program


def shown_rows(rows: np.ndarray) -> np.ndarray:
    """The blocks that are compared, (block, token, head, width)."""
    return rows.reshape(-1, BLOCK, *rows.shape[2:])[list(_SHOWN)]


def by_definition(setting: Setting, *, lengths: tuple[int, ...]) -> Program:
    """The same rows by dense attention to the keys that the plan lists, as often as it does."""
    import jax
    import jax.numpy as jnp

    def gradient(length: int) -> np.ndarray:
        q, k, v = arrays_of(length, setting)
        counts = counts_of(plan_of(length, setting))[:, list(_SHOWN)]
        raised = jnp.repeat(jnp.log(counts), BLOCK, axis=-1)[:, :, None]  # (head, block, 1, key)

        def loss(rows: Any) -> Any:
            scores = jnp.einsum("mwnh,snh->nmws", rows, k[0]) * rows.shape[-1] ** -0.5
            weights = jax.nn.softmax(scores + raised, axis=-1)
            return (jnp.einsum("nmws,snh->mwnh", weights, v[0]) ** 2).sum()

        return jax.jit(jax.grad(loss))(shown_rows(q))

    sizes = [setting.size(length, length // 4) for length in lengths]
    return Program(
        lambda: None,
        lambda: {f"gradient of queries, {one}": np.asarray(gradient(one)) for one in sizes},
    )


def counts_of(plan: np.ndarray) -> np.ndarray:
    """How often each block of queries reads each block of keys: (head, block, block)."""
    blocks = plan.shape[1]
    place = np.arange(blocks)
    near = abs(place[:, None] - place) <= 1
    counts = (near | (place == 0) | (place == blocks - 1)).astype(np.float32)
    counts = counts + (plan[..., None] == place).sum(2)
    counts[:, [0, -1]] = 1
    return counts


def lengths_case(long: int, brief: int) -> Case:
    """Attention at one length beside the same at another, per token."""
    other = f"xformer, {brief:,} tokens"
    return Case(
        f"bigbird-attention-{long}",
        f"BigBird attention forward+backward, {long:,} tokens, per token",
        {
            OURS: Side(functools.partial(at_length, length=long)),
            "by definition": Side(
                functools.partial(by_definition, lengths=(brief, long)), timed=False
            ),
            other: Side(functools.partial(at_length, length=brief)),
        },
        (Goal(other, 1 / 1.15, 1.0), Goal(other, 1 / 1.15, 1.0, measure="temporary")),
        note="At most 1.15 times as much per token is a ratio of at least 0.87.",
    )


CASES = [
    *(
        case(length, drawn=drawn, backward=backward)
        for backward in (False, True)
        for drawn in (True, False)
        for length in (1024, 4096)
    ),
    lengths_case(65536, 4096),
]
