"""Generation: recorded continuations, and every way of computing them the same."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from xformer import partitioning
from xformer.generation.decode import (
    PROMPT_BUCKET,
    compiled_search,
    generate,
    left_pad,
    prompts_of,
)
from xformer.generation.decoding import Decoding
from xformer.generation.sampling import Sampling
from xformer.generation.search import Limits
from xformer.layers.execution import Execution
from xformer.layers.heads import CausalLM, ConditionalGeneration
from xformer.layers.stack import restack
from xformer.models import build
from xformer.models.bigbird_config import BigBirdConfig
from xformer.models.umt5_config import UMT5Config
from xformer.models.xglm import XGLMConfig, XGLMForCausalLM
from xformer.outputs import FlaxGreedySearchOutput, FlaxSampleOutput
from xformer.partitioning import MeshConfig, Rules
from xformer.pretrained.folder import read_params

pytestmark = pytest.mark.usefixtures("quick_compilation")

NEW = 6
PROMPTS = [[45, 12, 78, 60, 59], [43, 107], [9, 10, 101, 113]]
KEY = jax.random.key(0)
DRAW = Sampling(1.0, top_k=20, top_p=0.95)


@pytest.fixture(scope="module")
def model(parity_folder):
    """A recorded model of 2 layers, and its parameters."""
    folder = parity_folder / "models" / "xglm_gen"
    config = XGLMConfig.from_pretrained(folder)
    return config, jax.tree.map(jnp.asarray, read_params(folder, config, CausalLM()))


def write(module, params, ids, mask, key=KEY, *, new=NEW, skip=0, sampling=None, **options):
    """Sequences as `generate` makes them, from one compiled program."""
    decoding = Decoding.of(module.config, sampling=sampling or Sampling(), **options)
    limits = Limits(*(jnp.asarray(number, jnp.int32) for number in (skip, 0, new)))
    prompts = prompts_of(module.config, jnp.asarray(ids), jnp.asarray(mask))
    return compiled_search(module, new, decoding)(params, prompts, limits, key).sequences_BS


@pytest.fixture
def run(model):
    """Continues prompts; keywords change the config."""

    def run(prompts=PROMPTS, *, sampling=None, key=KEY, execution=None, **fields):
        config, params = model
        module = build(dataclasses.replace(config, **fields), CausalLM(), execution or Execution())
        ids, mask = left_pad(prompts, config.pad_token_id, multiple=5)
        params = restack(params, module.execution.layers)
        return np.asarray(write(module, params, ids, mask, key, sampling=sampling))

    return run


def test_greedy_is_the_argmax_of_full_forwards(model, run):
    config, params = model
    module = build(config, CausalLM())
    apply = jax.jit(module.apply)
    sequences = run(eos_token_id=2)
    for row, prompt in enumerate(PROMPTS):
        padded = np.zeros((1, len(PROMPTS[0]) + NEW), np.int32)
        written = list(prompt)
        for _ in range(NEW):
            padded[0, : len(written)] = written  # what follows is not read
            logits = apply({"params": params}, jnp.asarray(padded)).logits
            written.append(int(logits[0, len(written) - 1].argmax()))
        assert sequences[row, 5 - len(prompt) :].tolist() == written
        assert (sequences[row, : 5 - len(prompt)] == config.pad_token_id).all()


def test_cache_changes_nothing_but_the_work(run):
    np.testing.assert_array_equal(run(sampling=DRAW, use_cache=False), run(sampling=DRAW))


def test_scanned_layers_write_the_same(run):
    np.testing.assert_array_equal(run(execution=Execution(layers="scan")), run())


def test_prompts_of_a_batch_do_not_touch_one_another(run):
    together = run(eos_token_id=2)
    for row, prompt in enumerate(PROMPTS):
        alone = run([prompt], eos_token_id=2)[0]
        np.testing.assert_array_equal(together[row], alone)


def test_end_token_ends_its_row_alone(model, run):
    free = run(eos_token_id=2)
    eos = int(free[1, 5 + 2])
    ended = run(eos_token_id=eos)
    for row, tokens in enumerate(free[:, 5:].tolist()):
        end = tokens.index(eos) + 1 if eos in tokens else NEW
        expected = tokens[:end] + [model[0].pad_token_id] * (NEW - end)
        assert ended[row, 5:].tolist() == expected
    assert (ended != free).any() and (ended[0] == free[0]).all()


class Counted(XGLMForCausalLM):
    """The model with a count of its forward passes."""

    def __call__(self, *args, **kwargs):
        jax.debug.callback(PASSES.append, 1)
        return super().__call__(*args, **kwargs)


PASSES = []


def test_loop_stops_when_every_row_has_ended(model, run):
    config, params = model
    first = run([PROMPTS[1]], eos_token_id=2)[0, 5:]
    for eos, passes in [(int(first[2]), 3), (2, NEW)]:
        PASSES.clear()
        module = Counted(dataclasses.replace(config, eos_token_id=eos))
        ids, mask = left_pad([PROMPTS[1]], config.pad_token_id, multiple=5)
        jax.block_until_ready(write(module, params, ids, mask))
        jax.effects_barrier()
        assert len(PASSES) == 1 + passes  # the prompts, then one for each token


def test_sampling_follows_the_key_and_says_so(model, run):
    one, same = run(sampling=DRAW), run(sampling=DRAW)
    np.testing.assert_array_equal(one, same)
    assert (one != run(sampling=DRAW, key=jax.random.key(1))).any()
    module, (ids, mask) = build(model[0], CausalLM()), left_pad(PROMPTS, 1, multiple=5)
    for sampling, struct in [(DRAW, FlaxSampleOutput), (Sampling(), FlaxGreedySearchOutput)]:
        decoding = Decoding.of(model[0], sampling=sampling)
        call = functools.partial(generate, module, max_new_tokens=NEW, decoding=decoding)
        assert type(jax.eval_shape(call, model[1], ids, mask, KEY)) is struct


def test_prompts_of_one_bucket_share_one_program(model):
    config, params = model
    module = build(config, CausalLM())
    search = compiled_search(module, 2, Decoding.of(config))
    assert compiled_search(build(config, CausalLM()), 2, Decoding.of(config)) is search
    for length in (3, 9, PROMPT_BUCKET):
        ids, mask = left_pad([[7] * length], config.pad_token_id)
        assert ids.shape == (1, PROMPT_BUCKET)
        write(module, params, ids, mask, new=2)
    assert search._cache_size() == 1


def test_sharded_parameters_write_the_same(model, run):
    config, params = model
    module = build(config, CausalLM())
    mesh = partitioning.make_mesh(MeshConfig(fsdp=4, tensor=2))
    ids = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    boxed = jax.eval_shape(module.init, KEY, ids)["params"]
    rules = Rules(vocab=())  # 131 tokens cannot be halved
    names = partitioning.axis_names(boxed)
    params = jax.device_put(params, partitioning.shardings(meta.unbox(boxed), names, mesh, rules))
    assert len(params["model"]["layers"]["0"]["fc1"]["kernel"].sharding.device_set) == 8
    ids, mask = left_pad(PROMPTS, config.pad_token_id, multiple=5)
    sequences = write(module, params, ids, mask, sampling=DRAW)
    np.testing.assert_array_equal(sequences, run(sampling=DRAW))


def test_left_pad_makes_a_rectangle():
    ids, mask = left_pad([[5, 6, 7], [8]], 1, multiple=4)
    np.testing.assert_array_equal(ids, [[1, 5, 6, 7], [1, 1, 1, 8]])
    np.testing.assert_array_equal(mask, [[0, 1, 1, 1], [0, 0, 0, 1]])
    assert ids.dtype == mask.dtype == np.int32
    assert left_pad([[1] * 33], 1)[0].shape == (1, 64)


@pytest.mark.parametrize("prompts", [[], [[]], [[3], []]])
def test_prompt_without_tokens_is_refused(prompts):
    with pytest.raises(ValueError, match="every prompt needs at least one token"):
        left_pad(prompts, 1)


@pytest.mark.parametrize("new", [0, -1])
def test_generating_nothing_is_refused(model, new):
    config, params = model
    ids, mask = map(jnp.asarray, left_pad(PROMPTS, config.pad_token_id))
    with pytest.raises(ValueError, match=f"max_new_tokens must be at least 1, got {new}"):
        generate(build(config, CausalLM()), params, ids, mask, KEY, max_new_tokens=new)


@pytest.mark.parametrize("fewest", [-1, NEW + 1])
def test_more_tokens_at_least_than_at_most_are_refused(model, fewest):
    config, params = model
    ids, mask = map(jnp.asarray, left_pad(PROMPTS, config.pad_token_id))
    limits = {"max_new_tokens": NEW, "min_new_tokens": fewest}
    said = f"min_new_tokens must be from 0 to max_new_tokens={NEW}, got {fewest}"
    with pytest.raises(ValueError, match=said):
        generate(build(config, CausalLM()), params, ids, mask, KEY, **limits)


def test_prompts_of_another_form_are_refused(untyped):
    for shape in [(3,), (2, 0)]:
        with pytest.raises(ValueError, match=r"input_ids must have shape \(rows, tokens\)"):
            prompts_of(XGLMConfig(), jnp.ones(shape, jnp.int32))
    ids = jnp.ones((2, 3), jnp.int32)
    with pytest.raises(ValueError, match="decoder_input_ids must have 2 rows, .* got 1"):
        prompts_of(UMT5Config(), ids, decoder_input_ids=ids[:1])


def test_a_decoding_says_what_an_encoder_decoder_begins_with():
    config = UMT5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    module, ids = build(config, ConditionalGeneration()), jnp.ones((1, 2), jnp.int32)
    params = meta.unbox(module.init(KEY, ids, decoder_input_ids=ids)["params"])
    for chosen, begins in [(7, 7), (None, config.decoder_start_token_id)]:
        decoding = Decoding.of(config, decoder_start_token_id=chosen)
        out = generate(module, params, ids, None, KEY, max_new_tokens=1, decoding=decoding)
        assert out.sequences[0, 0] == begins


@pytest.mark.parametrize("use_cache", [True, False])
def test_more_tokens_than_positions_are_refused(use_cache):
    fields = {"vocab_size": 9, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    fields |= {"num_attention_heads": 2, "max_position_embeddings": 10, "is_decoder": True}
    config = BigBirdConfig(**fields, attention_type="original_full", use_cache=use_cache)
    module, ids = build(config, CausalLM()), jnp.ones((1, 6), jnp.int32)
    params = meta.unbox(module.init(KEY, ids)["params"])
    write = functools.partial(generate, module, params, ids, None, KEY)
    assert write(max_new_tokens=4).sequences.shape == (1, 10)
    with pytest.raises(ValueError, match="11 tokens are more than BigBirdConfig.max_position"):
        write(max_new_tokens=5)
