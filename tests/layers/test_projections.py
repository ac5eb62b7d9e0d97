"""Linear, normalisation, token table and feed-forward against NumPy."""

import functools
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xformer.layers.embedding import TokenEmbedding
from xformer.layers.feedforward import ACTIVATIONS, feed_forward
from xformer.layers.linear import GroupedLinear, Linear, multiply_kept
from xformer.layers.norm import RMSNorm, layer_norm
from xformer.partitioning import Rules, constraints

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def apply(module, params, *inputs, **options):
    """`module.apply` on NumPy arrays."""
    params, inputs = jax.tree.map(jnp.asarray, (params, inputs))
    return module.apply({"params": params}, *inputs, **options)


def axes_of(module, *inputs):
    variables = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return nn.get_partition_spec(variables)["params"]


@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 3, 5)])
@pytest.mark.parametrize("use_bias", [True, False])
def test_linear_is_a_matrix_product(shape, use_bias):
    x, kernel, bias = normal(*shape), normal(5, 4), normal(4)
    params = {"kernel": kernel, "bias": bias} if use_bias else {"kernel": kernel}
    y = apply(Linear(4, ("embed", "mlp"), use_bias=use_bias), params, x)
    np.testing.assert_allclose(y, x @ kernel + bias * use_bias, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(5,), (1, 5), (2, 5), (2, 32, 5), (5, 13, 5)], ids=str)
@pytest.mark.parametrize("dtype, scaled", [("float32", False), ("bfloat16", False), ("int8", True)])
def test_matrices_that_are_kept_for_decoding_multiply_any_number_of_rows(shape, dtype, scaled):
    x = normal(*shape).astype("bfloat16" if dtype == "bfloat16" else "float32")
    matrix = (20 * normal(7, 5)).astype(dtype)
    scale = np.abs(normal(7)) if scaled else None
    y = jax.jit(multiply_kept)(x, matrix, scale)
    expected = x.astype(np.float32) @ matrix.astype(np.float32).T * (scale if scaled else 1.0)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the order of operands is that of CPUs")
@pytest.mark.parametrize("rows, order", [(8, (7, 8)), (64, (7, 64)), (65, (65, 7))])
def test_few_rows_come_second_in_products_on_cpus(rows, order):
    text = jax.jit(multiply_kept).lower(normal(rows, 5), normal(7, 5)).compile().as_text()
    shapes = re.findall(r"= f32\[(\d+),(\d+)\]\S* dot\(", text)
    assert shapes == [tuple(str(size) for size in order)]


@pytest.mark.parametrize("features", [4, 7])
@pytest.mark.parametrize("dtype, output_dtype", [("float32", None), ("bfloat16", "float32")])
def test_gradients_within_a_step_are_those_that_jax_derives(features, dtype, output_dtype):
    x, kernel, dy = normal(2, 3, 5), normal(5, features), normal(2, 3, features)
    module = Linear(
        features,
        ("embed", "mlp"),
        use_bias=False,
        dtype=jnp.dtype(dtype),
        output_dtype=None if output_dtype is None else jnp.dtype(output_dtype),
    )

    def derived(x, kernel):
        y, pull = jax.vjp(lambda *given: apply(module, {"kernel": given[1]}, given[0]), x, kernel)
        return pull(jnp.asarray(dy, y.dtype))

    expected = derived(x, kernel)
    with constraints(Rules()):
        found = derived(x, kernel)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        tolerance = 2**-8 if output_dtype else 1e-6
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("groups", [None, 2])
def test_projections_outside_of_steps_have_derivatives_in_forward_mode(groups):
    x, kernel = normal(1, 3, 6), normal(6, 4) if groups is None else normal(2, 3, 2)
    grouped = functools.partial(GroupedLinear, groups=groups) if groups else Linear
    module = grouped(features=4, axes=("embed", "mlp"), use_bias=False)

    def loss(kernel):
        return apply(module, {"kernel": kernel}, x).sum()

    found = jax.jvp(loss, (kernel,), (np.ones_like(kernel),))[1]
    assert found == pytest.approx(x.sum() * (2 if groups else 4), rel=1e-5)


def test_linear_parameters_are_named_and_float32():
    module = Linear(4, ("embed", "mlp"), dtype=jnp.dtype("bfloat16"))
    assert axes_of(module, normal(2, 5)) == {
        "kernel": jax.sharding.PartitionSpec("embed", "mlp"),
        "bias": jax.sharding.PartitionSpec("mlp"),
    }
    variables = jax.jit(module.init)(jax.random.key(0), normal(2, 5))
    params = nn.meta.unbox(variables)["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert not params["bias"].any() and params["kernel"].any()
    without = axes_of(Linear(4, ("embed", "mlp"), use_bias=False), normal(2, 5))
    assert set(without) == {"kernel"}


@pytest.mark.parametrize("groups, use_bias", [(1, True), (2, True), (6, False)])
def test_grouped_linear_is_a_block_diagonal_product(groups, use_bias):
    x, kernel, bias = normal(2, 3, 12), normal(groups, 12 // groups, 18 // groups), normal(18)
    whole = np.zeros((12, 18), np.float32)
    for group in range(groups):
        rows, columns = np.arange(12).reshape(groups, -1), np.arange(18).reshape(groups, -1)
        whole[np.ix_(rows[group], columns[group])] = kernel[group]
    params = {"kernel": kernel, "bias": bias} if use_bias else {"kernel": kernel}
    module = GroupedLinear(18, ("embed", "mlp"), groups, use_bias=use_bias)
    np.testing.assert_allclose(
        apply(module, params, x), x @ whole + bias * use_bias, rtol=1e-5, atol=1e-5
    )
    rounded = GroupedLinear(18, ("embed", "mlp"), groups, use_bias, jnp.dtype("bfloat16"))
    y = apply(rounded, params, x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(np.float32), x @ whole + bias * use_bias, atol=0.2)


@pytest.mark.parametrize("features", [8, 12, 20])
@pytest.mark.parametrize("dtype, atol", [("float32", 1e-5), ("bfloat16", 0.3)])
def test_gradients_of_grouped_linear_are_those_of_its_groups(features, dtype, atol):
    x, dy, bias = normal(2, 3, 12), normal(2, 3, features), normal(features)
    kernel = normal(2, 6, features // 2)
    module = GroupedLinear(features, ("embed", "mlp"), 2, True, jnp.dtype(dtype))

    def by_module(params, x):
        return apply(module, params, x)

    with constraints(Rules()):
        _, pull = jax.vjp(by_module, {"kernel": kernel, "bias": bias}, x)
        params, dx = pull(jnp.asarray(dy, dtype))
    for group in range(2):
        inputs, outputs = (np.split(array, 2, axis=-1)[group] for array in (x, dy))
        dkernel = np.einsum("BTI,BTO->IO", inputs, outputs)
        np.testing.assert_allclose(params["kernel"][group], dkernel, rtol=atol, atol=atol)
        dinputs = np.split(np.asarray(dx, np.float32), 2, axis=-1)[group]
        np.testing.assert_allclose(dinputs, outputs @ kernel[group].T, rtol=atol, atol=atol)
    np.testing.assert_allclose(params["bias"], dy.sum((0, 1)), rtol=atol, atol=atol)


@pytest.mark.parametrize(
    "module", [Linear(8, ("embed", "mlp")), GroupedLinear(8, ("embed", "mlp"), 2)]
)
def test_an_activation_is_applied_to_the_sum(module):
    x, bias = normal(1, 3, 4), normal(8)
    shape = (4, 8) if isinstance(module, Linear) else (2, 2, 4)
    params = {"kernel": normal(*shape), "bias": bias}
    active = module.clone(activation=jnp.tanh)
    np.testing.assert_allclose(
        apply(active, params, x), np.tanh(apply(module, params, x)), rtol=1e-5
    )


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="it is the program of a CPU")
def test_groups_stay_in_front_between_two_projections():
    up = GroupedLinear(48, ("embed", "mlp"), 4, activation=ACTIVATIONS["gelu"])
    down = GroupedLinear(24, ("mlp", "embed"), 4)
    params = (
        {"kernel": normal(4, 6, 12), "bias": normal(48)},
        {"kernel": normal(4, 12, 6), "bias": normal(24)},
    )

    def project(params, x):
        return apply(down, params[1], apply(up, params[0], x))

    def gradients(params, x):
        with constraints(Rules()):
            return jax.grad(lambda *given: jnp.square(project(*given)).sum(), (0, 1))(params, x)

    for function in (project, gradients):
        text = jax.jit(function).lower(params, normal(2, 5, 24)).compile().as_text()
        turned = re.findall(r"= f32\[([\d,]+)\]\S* (?:transpose|copy)\(", text)
        sizes = {math.prod(map(int, shape.split(","))) for shape in turned}
        assert sizes == {2 * 5 * 24}  # on the way in and out; between are 2 * 5 * 48


def test_grouped_linear_has_an_axis_of_groups_and_draws_them_alike():
    module = GroupedLinear(16, ("embed", "mlp"), 4)
    assert axes_of(module, normal(1, 2, 8)) == {
        "kernel": jax.sharding.PartitionSpec("groups", "embed", "mlp"),
        "bias": jax.sharding.PartitionSpec("mlp"),
    }
    wide = GroupedLinear(2048, ("embed", "mlp"), 8)
    params = nn.meta.unbox(jax.jit(wide.init)(jax.random.key(0), normal(1, 1, 512)))["params"]
    assert params["kernel"].shape == (8, 64, 256)
    np.testing.assert_allclose(np.std(params["kernel"], axis=(1, 2)), np.full(8, 0.125), rtol=0.05)


@pytest.mark.parametrize("width, features", [(9, 8), (8, 9)])
def test_groups_that_do_not_divide_are_refused(width, features):
    with pytest.raises(ValueError, match=f"groups=4 must divide the widths {width} and {features}"):
        GroupedLinear(features, ("embed", "mlp"), 4).init(
            jax.random.key(0), jnp.zeros((1, 2, width))
        )


def test_linear_accumulates_in_its_output_dtype():
    x, kernel = normal(3, 512), normal(512, 4)
    module = Linear(4, ("embed", "vocab"), False, jnp.dtype("bfloat16"), jnp.dtype("float32"))
    y = apply(module, {"kernel": kernel}, x)
    plain = apply(module.clone(output_dtype=None), {"kernel": kernel}, x)
    x, kernel = (np.asarray(jnp.asarray(a, jnp.bfloat16), np.float64) for a in (x, kernel))
    assert y.dtype == jnp.float32 and plain.dtype == jnp.bfloat16
    np.testing.assert_allclose(y, x @ kernel, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("groups", [None, 2])
@pytest.mark.parametrize(
    "dtype, wanted, added_up",
    [
        ("bfloat16", None, "bfloat16"),
        ("bfloat16", "float32", "float32"),
        ("float32", None, "float32"),
        ("float32", "bfloat16", "bfloat16"),
        ("float16", "float32", "float32"),
    ],
)
def test_gradients_of_kernels_leave_their_product_in_the_dtype_that_is_wanted(
    dtype, wanted, added_up, groups
):
    x = jnp.full((1, 2049, 4), 1.0)  # bfloat16 has no 2049, nor has float16
    options = {"use_bias": False, "dtype": jnp.dtype(dtype)}
    module = Linear(4, ("embed", "mlp"), **options)
    if groups is not None:
        module = GroupedLinear(4, ("embed", "mlp"), groups, **options)
    params = nn.meta.unbox(jax.jit(module.init)(jax.random.key(0), x))

    def gradients(params, x):
        with constraints(Rules(), wanted):

            def total(params, x):
                return module.apply(params, x).astype(jnp.float32).sum()

            return jax.grad(total, argnums=(0, 1))(params, x)

    (kernel,) = jax.tree.leaves(jax.jit(gradients)(params, x)[0])
    assert kernel.dtype == jnp.float32
    assert (kernel == jnp.asarray(2049, added_up).astype(jnp.float32)).all()
    expected = jax.jit(jax.grad(lambda x: module.apply(params, x).astype(jnp.float32).sum()))(x)
    np.testing.assert_array_equal(jax.jit(gradients)(params, x)[1], expected)


def test_layer_norm_keeps_its_digits_at_a_large_mean():
    x = 1000.0 + normal(4, 64)
    scale, bias = normal(64), normal(64)
    module = layer_norm(epsilon=1e-5, dtype=jnp.dtype("float32"), name="norm")
    y = apply(module, {"scale": scale, "bias": bias}, x)
    exact = np.asarray(x, np.float64)
    centred = exact - exact.mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale + bias
    np.testing.assert_allclose(y, expected, atol=5e-4)  # float32 has 6e-5 at 1000


def test_layer_norm_has_its_epsilon_dtype_and_axes():
    module = layer_norm(epsilon=4.0, dtype=jnp.dtype("bfloat16"), name="norm")
    params = {"scale": np.ones(2, np.float32), "bias": np.zeros(2, np.float32)}
    y = apply(module, params, np.array([[-2.0, 2.0]], np.float32))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), [[-(0.5**0.5), 0.5**0.5]], rtol=4e-3)
    embed = jax.sharding.PartitionSpec("embed")
    assert axes_of(module, normal(1, 2)) == {"scale": embed, "bias": embed}


@pytest.mark.parametrize(
    "norm", [RMSNorm(), layer_norm(epsilon=1e-5, dtype=jnp.dtype("float32"), name="norm")]
)
def test_a_row_by_itself_is_normalised_without_its_axis(norm):
    """Beside an axis of size one CPUs are slow at sums; the values are those of any other row."""
    x, dy = jnp.asarray(normal(1, 3, 8)), jnp.asarray(normal(1, 3, 8))
    params = nn.meta.unbox(norm.init(jax.random.key(0), x))

    def passes(params, x, dy):
        y, pull = jax.vjp(norm.apply, params, x)
        return y, *pull(dy)

    steps = jax.make_jaxpr(passes)(params, x, dy).eqns
    summed = [step.invars[0].aval for step in steps if step.primitive.name == "reduce_sum"]
    assert len(summed) >= 3 and max(one.ndim for one in summed) == 2
    y, dparams, dx = passes(params, x, dy)
    twice = lambda one: jnp.concatenate([one, one])  # noqa: E731
    of_two = passes(params, twice(x), twice(dy))
    expected = twice(y), jax.tree.map(lambda one: 2 * one, dparams), twice(dx)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), of_two, expected
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_token_embedding_looks_up_rows(dtype):
    table = normal(7, 4)
    ids = np.array([[6, 0]])
    y = apply(TokenEmbedding(7, 4, jnp.dtype(dtype)), {"embedding": table}, ids)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, table[ids].astype(dtype))


@pytest.mark.parametrize("wrong", [7, 100, -1, -7, -100])
def test_token_embedding_of_no_token_is_nan(wrong):
    y = apply(TokenEmbedding(7, 4), {"embedding": normal(7, 4)}, np.array([[3, wrong]]))
    assert np.isfinite(y[0, 0]).all() and np.isnan(y[0, 1]).all()


@pytest.mark.parametrize("dtype, rtol", [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_token_embedding_scores_in_float32(dtype, rtol):
    table, x = normal(7, 64), normal(2, 3, 64)
    module = TokenEmbedding(7, 64, jnp.dtype(dtype))
    y = apply(module, {"embedding": table}, x, method="scores").logits()
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, x @ table.T, rtol=rtol, atol=rtol * 8)


REFERENCE_ACTIVATIONS = {
    "gelu": lambda x: 0.5 * x * (1.0 + math.erf(x / math.sqrt(2.0))),
    "gelu_new": lambda x: (
        0.5 * x * (1.0 + math.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
    ),
    "gelu_pytorch_tanh": lambda x: (
        0.5 * x * (1.0 + math.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
    ),
    "quick_gelu": lambda x: x / (1.0 + math.exp(-1.702 * x)),
    "relu": lambda x: max(x, 0.0),
    "silu": lambda x: x / (1.0 + math.exp(-x)),
    "swish": lambda x: x / (1.0 + math.exp(-x)),
    "tanh": math.tanh,
}


def test_the_exact_gelu_keeps_its_precision_and_slope_in_bfloat16():
    x = jnp.linspace(-6, 6, 241, dtype=jnp.bfloat16)
    known = np.asarray(x, np.float64)
    below = np.array([0.5 * math.erfc(-one / math.sqrt(2)) for one in known])
    slope = below + known * np.exp(-0.5 * known**2) / math.sqrt(2 * math.pi)
    gelu = ACTIVATIONS["gelu"]
    found, found_slope = jax.jvp(gelu, (x,), (jnp.ones_like(x),))
    assert found.dtype == found_slope.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(found, np.float64), known * below, rtol=2**-8, atol=1e-6)
    np.testing.assert_allclose(np.asarray(found_slope, np.float64), slope, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_is_its_formula(name):
    x = np.linspace(-6, 6, 97, dtype=np.float32)
    expected = [REFERENCE_ACTIVATIONS[name](float(value)) for value in x]
    np.testing.assert_allclose(ACTIVATIONS[name](jnp.asarray(x)), expected, atol=2e-6)


class FeedForward(nn.Module):
    rate: float = 0.0

    @nn.compact
    def __call__(self, x_BTD, key=None):
        return feed_forward(
            x_BTD,
            width=6,
            activation="relu",
            names=("up", "down"),
            dropout_rate=self.rate,
            dtype=jnp.dtype("float32"),
            kernel_init=nn.initializers.normal(1.0),
            key=key,
        )


def test_feed_forward_is_two_projections_around_an_activation():
    params = {
        "up": {"kernel": normal(4, 6), "bias": normal(6)},
        "down": {"kernel": normal(6, 4), "bias": normal(4)},
    }
    x = normal(2, 3, 4)
    hidden = np.maximum(x @ params["up"]["kernel"] + params["up"]["bias"], 0.0)
    expected = hidden @ params["down"]["kernel"] + params["down"]["bias"]
    plain = apply(FeedForward(), params, x)
    np.testing.assert_allclose(plain, expected, rtol=1e-5, atol=1e-5)
    # With the second projection an identity the dropped hidden units are seen one by one.
    params["down"] = {"kernel": np.eye(6, 4, dtype=np.float32), "bias": np.zeros(4, np.float32)}
    dropped = apply(FeedForward(0.5), params, x, jax.random.key(0))
    is_zero = np.isclose(dropped, 0.0)
    np.testing.assert_allclose(dropped, np.where(is_zero, 0.0, 2.0 * hidden[..., :4]), rtol=1e-5)
    assert 0 < (is_zero & (hidden[..., :4] > 0)).sum() < is_zero.size


def test_feed_forward_names_its_axes():
    axes = axes_of(FeedForward(), normal(1, 1, 4))
    assert axes["up"]["kernel"] == jax.sharding.PartitionSpec("embed", "mlp")
    assert axes["down"]["kernel"] == jax.sharding.PartitionSpec("mlp", "embed")
