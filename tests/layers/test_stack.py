"""One stack in every form: loop, scan and each remat policy are the same function."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from xformer.layers.dropout import dropout
from xformer.layers.execution import LAYER_MODES, REMAT_POLICIES, Execution
from xformer.layers.linear import GroupedLinear, Linear
from xformer.layers.stack import Stack, restack
from xformer.partitioning import Rules, constraints

LAYERS, WIDTH = 3, 4
FORMS = [
    (layers, remat)
    for layers, remat in itertools.product(LAYER_MODES, REMAT_POLICIES)
    if (layers, remat) != ("loop", "offload")
]
KEY = jax.random.key(7)


class Block(nn.Module):
    """A projection with dropout that also reports a sum."""

    @nn.compact
    def __call__(self, x_BTD, inputs, context):
        hidden = Linear(WIDTH, ("embed", "mlp"), name="fc")(x_BTD + inputs["shift"])
        dropped = dropout(jnp.tanh(hidden), 0.3, inputs["key"])
        return x_BTD + dropped * context, {"sum": dropped.sum()}


class AddOne(nn.Module):
    @nn.compact
    def __call__(self, x_BTD, inputs, context):
        return x_BTD + self.param("one", nn.initializers.ones, ()), None


def make_stack(layers="loop", remat="none", layerdrop=0.0, block=Block):
    return Stack(block, LAYERS, Execution(layers=layers, remat=remat), layerdrop, name="blocks")


def inputs(dropout_key):
    keys = [None] * LAYERS if dropout_key is None else jax.random.split(dropout_key, LAYERS)
    return [{"shift": jnp.float32(i), "key": keys[i]} for i in range(LAYERS)]


@functools.cache
def looped_params():
    init = jax.jit(lambda key: make_stack().init(key, x(), inputs(None), jnp.float32(1.0)))
    return nn.meta.unbox(init(KEY))["params"]


def x():
    return jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, WIDTH)), jnp.float32)


@functools.cache
def computed(layers, remat, random):
    """Everything a stack returns and its gradient, in looped form."""
    stack = make_stack(layers, remat, layerdrop=0.4 if random else 0.0)
    drop, noise = jax.random.split(KEY) if random else (None, None)

    def loss(params, x):
        out = stack.apply(
            {"params": params}, x, inputs(noise), jnp.float32(0.7), key=drop, keep_inputs=True
        )
        return jnp.square(out.x_BTD).sum() + out.outputs[0]["sum"], out

    value = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (_, out), grads = value(restack(looped_params(), layers), x())
    return out, restack(grads, "loop")


@pytest.mark.parametrize(
    "layers, remat, random",
    [*((*form, True) for form in FORMS[1:]), ("loop", "full", False), ("scan", "none", False)],
)
def test_every_form_computes_the_same(layers, remat, random):
    expected, actual = computed("loop", "none", random), computed(layers, remat, random)
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    assert len(actual[0].outputs) == len(actual[0].inputs_BTD) == LAYERS
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, actual, expected)


def test_randomness_acts():
    plain, random = computed("loop", "none", False)[0], computed("loop", "none", True)[0]
    assert not np.allclose(plain.x_BTD, random.x_BTD)


def count_operations(jaxpr, name):
    """How often a primitive stands in a program, the programs within it included."""
    total = 0
    for equation in jaxpr.eqns:
        total += equation.primitive.name == name
        inner = jax.tree.leaves(equation.params, is_leaf=lambda leaf: hasattr(leaf, "eqns"))
        total += sum(count_operations(one, name) for one in inner if hasattr(one, "eqns"))
    return total


@pytest.mark.parametrize("layers", LAYER_MODES)
def test_remat_decides_what_the_gradient_computes_again(layers):
    def count(remat, operation):
        stack = make_stack(layers, remat)
        params = restack(looped_params(), layers)

        def loss(params, x):
            out = stack.apply({"params": params}, x, inputs(None), jnp.float32(1.0))
            return jnp.square(out.x_BTD).sum()

        return count_operations(jax.make_jaxpr(jax.grad(loss, (0, 1)))(params, x()), operation)

    policies = [remat for mode, remat in FORMS if mode == layers]
    tanh = {remat: count(remat, "tanh") for remat in policies}
    products = {remat: count(remat, "dot_general") for remat in policies}
    assert tanh["none"] < tanh["minimal"] == tanh["full"]
    assert products["none"] == products["minimal"] < products["full"]
    if layers == "scan":
        assert (tanh["offload"], products["offload"]) == (tanh["full"], products["full"])


class Projections(nn.Module):
    """Two projections, of groups or not; the second needs the first for its gradient."""

    groups: int | None = None

    @nn.compact
    def __call__(self, x_BTD, inputs, context):
        kind = functools.partial(GroupedLinear, groups=self.groups) if self.groups else Linear
        for name in ("first", "second"):
            x_BTD = jnp.tanh(kind(WIDTH, ("embed", "mlp"), name=name)(x_BTD))
        return x_BTD, None


@pytest.mark.parametrize("layers", LAYER_MODES)
@pytest.mark.parametrize("groups", [None, 1, 2])
@pytest.mark.parametrize("gradient_dtype", [None, "bfloat16"])
def test_minimal_keeps_products_with_weights_whatever_their_groups(layers, groups, gradient_dtype):
    def count(remat, operation):
        block = functools.partial(Projections, groups)
        stack = make_stack(layers, remat, block=block)
        params = jax.eval_shape(stack.init, KEY, x(), [None] * LAYERS, None)

        def loss(params, x):
            with constraints(Rules(), gradient_dtype):
                out = stack.apply(nn.meta.unbox(params), x, [None] * LAYERS, None)
            return jnp.square(out.x_BTD).sum()

        return count_operations(jax.make_jaxpr(jax.grad(loss, (0, 1)))(params, x()), operation)

    for operation, is_kept in (("dot_general", True), ("tanh", False)):
        none, minimal, full = (count(remat, operation) for remat in ("none", "minimal", "full"))
        assert none < full and minimal == (none if is_kept else full)


def test_a_scanned_program_does_not_grow_with_the_layers():
    def lines(form, layers):
        stack = Stack(Projections, layers, Execution(layers=form), name="blocks")
        arguments = [None] * layers, None
        params = nn.meta.unbox(jax.eval_shape(stack.init, KEY, x(), *arguments))

        def loss(params, x):
            return jnp.square(stack.apply(params, x, *arguments).x_BTD).sum()

        return jax.jit(jax.grad(loss, (0, 1))).lower(params, x()).as_text().count("\n")

    assert lines("scan", 2) == lines("scan", 4)
    assert lines("loop", 2) < lines("loop", 4)


def test_what_enters_a_layer_waits_on_the_host():
    params = restack(looped_params(), "scan")

    def kept(remat):
        """Where the forward pass leaves what is of the size of all layers' activations."""

        def loss(x):
            out = make_stack("scan", remat).apply({"params": params}, x, inputs(None), 1.0)
            return jnp.square(out.x_BTD).sum()

        program = jax.make_jaxpr(jax.grad(loss))(x())
        forward = next(one for one in program.eqns if one.primitive.name == "scan")
        avals = [variable.aval for variable in forward.outvars]
        return [aval.memory_space.name for aval in avals if aval.shape == (LAYERS, *x().shape)]

    assert kept("full") == ["Device"]
    assert kept("offload") == ["Host"]


@pytest.mark.parametrize("layers", LAYER_MODES)
def test_layerdrop_skips_each_layer_at_its_rate(layers):
    stack = make_stack(layers, layerdrop=0.25, block=AddOne)
    ones = {"one": jnp.ones(())}
    params = restack({str(i): ones for i in range(LAYERS)}, layers)

    @jax.jit
    @jax.vmap
    def entered(key):
        out = stack.apply(
            {"params": params},
            jnp.zeros((1, 1, 1)),
            [None] * LAYERS,
            None,
            key=key,
            keep_inputs=True,
        )
        return jnp.stack([*out.inputs_BTD, out.x_BTD]).ravel()

    steps = np.diff(entered(jax.random.split(KEY, 2000)), axis=1)
    assert set(np.unique(steps)) == {0.0, 1.0}
    np.testing.assert_allclose(steps.mean(axis=0), 0.75, atol=5 * (0.1875 / 2000) ** 0.5)
    assert abs(np.corrcoef(steps.T)[np.triu_indices(LAYERS, 1)]).max() < 0.1


def test_layers_start_from_the_same_numbers_looped_and_scanned():
    init = jax.jit(lambda key: make_stack("scan").init(key, x(), inputs(None), jnp.float32(1.0)))
    boxed = init(KEY)
    scanned = nn.meta.unbox(boxed)["params"]
    jax.tree.map(np.testing.assert_array_equal, restack(looped_params(), "scan"), scanned)
    first, second, _ = (looped_params()[str(i)]["fc"]["kernel"] for i in range(LAYERS))
    assert not np.allclose(first, second)
    axes = nn.get_partition_spec(boxed)["params"]["stacked"]["fc"]
    assert axes == {
        "kernel": jax.sharding.PartitionSpec("layers", "embed", "mlp"),
        "bias": jax.sharding.PartitionSpec("layers", "mlp"),
    }


def test_restack_is_its_own_inverse_and_touches_stacks_only():
    tree = {"embed": jnp.ones(2), "layers": looped_params(), "other": {"deep": looped_params()}}
    scanned = restack(tree, "scan")
    assert set(scanned["layers"]) == set(scanned["other"]["deep"]) == {"stacked"}
    assert scanned["layers"]["stacked"]["fc"]["kernel"].shape == (LAYERS, WIDTH, WIDTH)
    assert scanned["embed"] is tree["embed"]
    jax.tree.map(np.testing.assert_array_equal, restack(scanned, "loop"), tree)
    for form, layers in ((tree, "loop"), (scanned, "scan")):
        jax.tree.map(np.testing.assert_array_equal, restack(form, layers), form)


@pytest.mark.parametrize(
    "numbered",
    [
        {"0": {"w": jnp.ones(2)}, "1": {"w": jnp.ones(3)}},
        {"0": {"w": jnp.ones(2)}, "1": {"v": jnp.ones(2)}},
        {"0": jnp.ones(2), "1": jnp.ones(2)},
        {"1": {"w": jnp.ones(2)}, "2": {"w": jnp.ones(2)}},
        {},
    ],
)
def test_restack_leaves_dicts_alone_that_only_look_like_stacks(numbered):
    assert jax.tree.structure(restack(numbered, "scan")) == jax.tree.structure(numbered)


@pytest.mark.parametrize("optimizer", [optax.adamw(0.1), optax.sgd(0.1, momentum=0.9)])
def test_restack_converts_optimizer_state(optimizer):
    update = jax.jit(lambda params: optimizer.update(params, optimizer.init(params), params)[1])
    params = {"layers": looped_params()}
    looped, scanned = update(params), update(restack(params, "scan"))
    assert jax.tree.structure(restack(looped, "scan")) == jax.tree.structure(scanned)
    jax.tree.map(np.testing.assert_array_equal, restack(looped, "scan"), scanned)
    jax.tree.map(np.testing.assert_array_equal, restack(scanned, "loop"), looped)


@pytest.mark.parametrize("layers", LAYER_MODES)
@pytest.mark.parametrize("found", [LAYERS - 1, LAYERS + 1])
def test_stack_refuses_parameters_of_another_number_of_layers(layers, found):
    params = restack({str(i): {"one": jnp.ones(())} for i in range(found)}, layers)
    stack = make_stack(layers, block=AddOne)
    message = f"have {found} layers and the config asks for {LAYERS}; change the config's number of"
    with pytest.raises(ValueError, match=message):
        stack.apply({"params": params}, x(), [None] * LAYERS, None)


@pytest.mark.parametrize("layers, other", [("loop", "scan"), ("scan", "loop")])
def test_stack_refuses_parameters_of_the_other_form(layers, other):
    params = {"params": restack(looped_params(), other)}
    message = r"have no '(0|stacked)': they are those of a (scann|loop)ed stack; convert them with "
    with pytest.raises(ValueError, match=message + r"restack\(\) or change Execution.layers") as e:
        make_stack(layers).apply(params, x(), inputs(None), jnp.float32(1.0))
    assert f"{ {'loop': 'loop', 'scan': 'scann'}[other] }ed stack" in str(e.value)
