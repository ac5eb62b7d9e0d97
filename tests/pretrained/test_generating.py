"""The documented `generate`: limits, ids, keys and what is refused."""

import logging
from pathlib import Path

import jax
import numpy as np
import pytest

import xformer
from xformer import FlaxXGLMForCausalLM, XGLMConfig
from xformer.generation.config import FILE_NAME, GenerationConfig

pytestmark = pytest.mark.usefixtures("quick_compilation")

FIXTURES = Path(__file__).parents[1] / "tokenization" / "fixtures"
IDS = np.random.default_rng(0).integers(3, 19, (2, 4))


@pytest.fixture(scope="module")
def model():
    config = XGLMConfig(
        vocab_size=19,
        max_position_embeddings=64,
        d_model=12,
        ffn_dim=20,
        num_layers=2,
        attention_heads=3,
        init_std=0.5,
    )
    return FlaxXGLMForCausalLM(config, seed=4)


def test_limits_count_the_prompt_or_the_new_tokens(model):
    for limits, width in [({}, 20), ({"max_length": 9}, 9), ({"max_new_tokens": 3}, 7)]:
        sequences = model.generate(IDS, eos_token_id=0, **limits).sequences
        assert sequences.shape == (2, width)
        np.testing.assert_array_equal(sequences[:, :4], IDS)
    model.config.max_length = 11
    assert model.generate(IDS, eos_token_id=0).sequences.shape == (2, 11)
    model.config.max_length = 20
    both = model.generate(IDS, eos_token_id=0, max_length=5, max_new_tokens=3)
    assert both.sequences.shape == (2, 7)
    with pytest.raises(ValueError, match="max_length=4 leaves no room after a prompt of 4 tokens"):
        model.generate(IDS, max_length=4)
    with pytest.raises(ValueError, match="max_new_tokens must be from 1 to"):
        model.generate(IDS, max_new_tokens=0)


def test_rows_end_at_the_end_token_and_columns_at_the_longest_row(model):
    free = np.asarray(model.generate(IDS, eos_token_id=0, max_new_tokens=8).sequences)
    end = int(free[0, 5])
    out = np.asarray(
        model.generate(IDS, eos_token_id=end, pad_token_id=18, max_new_tokens=8).sequences
    )
    stops = [[*row[4:], end].index(end) + 1 for row in free.tolist()]
    assert out.shape[1] == 4 + min(max(stops), 8)
    for row, stop in enumerate(stops):
        np.testing.assert_array_equal(out[row, : 4 + stop], free[row, : 4 + stop])
        assert (out[row, 4 + stop :] == 18).all()


def test_sampling_follows_its_key(model):
    def draw(seed, **settings):
        key = jax.random.PRNGKey(seed)
        made = model.generate(IDS, prng_key=key, do_sample=True, eos_token_id=0, **settings)
        assert type(made) is xformer.FlaxSampleOutput
        return np.asarray(made.sequences)

    np.testing.assert_array_equal(draw(1), draw(1))
    assert not np.array_equal(draw(1), draw(2))
    greedy = model.generate(IDS, eos_token_id=0).sequences
    np.testing.assert_array_equal(draw(1, top_k=1), greedy)
    np.testing.assert_array_equal(draw(1, temperature=1e-4), greedy)
    with pytest.raises(ValueError, match="temperature must be at least 1e-30, got 0"):
        draw(1, temperature=0.0)


def test_generation_inside_jit_keeps_the_full_length(model):
    inside = jax.jit(lambda ids, params: model.generate(ids, params=params, max_length=9).sequences)
    outside = model.generate(IDS, max_length=9).sequences
    full = inside(IDS.astype(np.int32), model.params)
    assert full.shape == (2, 9)
    np.testing.assert_array_equal(full[:, : outside.shape[1]], outside)


def test_only_language_models_generate(model):
    assert model.can_generate() and not xformer.FlaxXGLMModel.can_generate()
    assert not hasattr(xformer.FlaxXGLMModel, "generate")
    with pytest.raises(TypeError, match="generate\\(\\) has no setting 'num_beam'"):
        model.generate(IDS, num_beam=2)


def test_a_loop_of_ones_own_writes_what_generate_writes(model):
    mask = np.ones((2, 4), np.int64)
    mask[1, :2] = 0
    expected = model.generate(IDS, attention_mask=mask, eos_token_id=0, max_length=9).sequences
    arguments = model.prepare_inputs_for_generation(IDS, 9, attention_mask=mask)
    np.testing.assert_array_equal(arguments["position_ids"], [[0, 1, 2, 3], [0, 0, 0, 1]])
    assert arguments["attention_mask"].shape == (2, 9)
    step, ids = jax.jit(model.__call__), IDS.astype(np.int32)
    sequences = [ids]
    for _ in range(5):
        out = step(ids, **arguments)
        arguments = model.update_inputs_for_generation(out, arguments)
        ids = out.logits[:, -1:].argmax(-1).astype(np.int32)
        sequences.append(ids)
    np.testing.assert_array_equal(np.concatenate(sequences, axis=1), expected)
    with pytest.raises(ValueError, match="max_length=3 must hold the prompt of 4 tokens"):
        model.prepare_inputs_for_generation(IDS, 3)


def compilations(call):
    """What was compiled meanwhile, by name."""
    with jax.log_compiles(), warnings_as_list() as lines:
        call()
    return [line.split()[1] for line in lines if line.startswith("Compiling ")]


class warnings_as_list(logging.Handler):  # noqa: N801
    """Collects the compiler's log."""

    def __enter__(self):
        self.lines = []
        logging.getLogger("jax").addHandler(self)
        return self.lines

    def __exit__(self, *_):
        logging.getLogger("jax").removeHandler(self)

    def emit(self, record):
        self.lines.append(record.getMessage())


def test_prompts_of_one_bucket_share_one_program(model):
    def generate(length, **settings):
        ids = np.full((2, length), 7)
        return lambda: model.generate(ids, eos_token_id=[0, 9], **settings)

    first = compilations(generate(3, max_new_tokens=5))
    assert any("_search" in name for name in first), first
    assert compilations(generate(3, max_new_tokens=5)) == []
    for length, settings in [
        (9, {"max_new_tokens": 5}),
        (14, {"max_new_tokens": 11}),
        (9, {"max_length": 30}),
        (12, {"max_length": 30, "min_length": 15}),
    ]:
        again = compilations(generate(length, **settings))
        assert not any("_search" in name for name in again), again


def test_left_padding_of_the_bucket_changes_nothing(model):
    """A bucketed call writes what one without places to spare does."""
    ids = np.random.default_rng(3).integers(3, 19, (2, 32))
    settings = {"max_new_tokens": 32, "eos_token_id": 0}
    mask = np.ones_like(ids)
    mask[:, :27] = 0
    full = np.asarray(model.generate(ids, attention_mask=mask, **settings).sequences)
    short = np.asarray(model.generate(ids[:, 27:], **settings).sequences)
    np.testing.assert_array_equal(short, full[:, 27:])


def test_several_sequences_of_a_prompt(model):
    settings = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 6}
    drawn = np.asarray(model.generate(IDS, eos_token_id=0, **settings).sequences)
    assert drawn.shape == (6, 10)
    np.testing.assert_array_equal(drawn[:, :4], np.repeat(IDS, 3, axis=0))
    assert len({tuple(row) for row in drawn.tolist()}) == 6


def test_scores_are_those_that_the_tokens_were_chosen_by(model):
    settings = {"max_new_tokens": 5, "eos_token_id": 0, "suppress_tokens": [4, 5]}
    out = model.generate(IDS, output_scores=True, **settings)
    logits = model(out.sequences[:, :-1]).logits[:, 3:]
    expected = np.moveaxis(np.asarray(logits), 1, 0).copy()
    expected[..., [4, 5]] = -np.inf
    assert out.scores.shape == (5, 2, 19)
    np.testing.assert_allclose(out.scores, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(out.scores.argmax(-1).T, out.sequences[:, 4:])
    assert model.generate(IDS, **settings).scores is None
    drawn = model.generate(IDS, output_scores=True, do_sample=True, top_k=3, **settings)
    assert (np.isfinite(drawn.scores).sum(-1) == 3).all()


def test_settings_come_from_the_call_then_the_config_given_then_the_models(model):
    own = FlaxXGLMForCausalLM(model.config, seed=4)
    own.generation_config.max_new_tokens = 3
    own.generation_config.eos_token_id = 0
    assert own.generate(IDS).sequences.shape == (2, 7)
    given = GenerationConfig(max_new_tokens=5, eos_token_id=0)
    assert own.generate(IDS, given).sequences.shape == (2, 9)
    assert own.generate(IDS, given, max_new_tokens=2).sequences.shape == (2, 6)
    assert own.generation_config.max_new_tokens == 3 and given.max_new_tokens == 5
    bare = own.generate(IDS, return_dict_in_generate=False)
    np.testing.assert_array_equal(bare, own.generate(IDS).sequences)


def test_generation_config_is_kept_beside_the_weights(model, tmp_path):
    model.save_pretrained(tmp_path / "none")
    assert not (tmp_path / "none" / FILE_NAME).exists()
    own = FlaxXGLMForCausalLM(model.config, seed=4)
    own.generation_config = GenerationConfig(num_beams=2, eos_token_id=[0, 5])
    own.save_pretrained(tmp_path / "own")
    loaded = FlaxXGLMForCausalLM.from_pretrained(tmp_path / "own")
    assert loaded.generation_config == own.generation_config
    assert type(loaded.generate(IDS)) is xformer.FlaxBeamSearchOutput
    (tmp_path / "own" / FILE_NAME).write_text("{")
    damaged = FlaxXGLMForCausalLM.from_pretrained(tmp_path / "own")  # as good for everything else
    with pytest.raises(ValueError, match="generation_config.json is not JSON"):
        damaged.generate(IDS)
    (tmp_path / "own" / FILE_NAME).write_text('{"num_beams": 0}')
    with pytest.raises(ValueError, match="generation_config.json: num_beams must be from"):
        FlaxXGLMForCausalLM.from_pretrained(tmp_path / "own").generate(IDS)
    body = xformer.FlaxXGLMModel.from_pretrained(tmp_path / "own")
    assert not hasattr(body, "generation_config")


def test_the_loop_can_run_in_python(model):
    settings = {"max_new_tokens": 2, "eos_token_id": 0}
    plain = model.generate(IDS, trace=False, **settings).sequences
    np.testing.assert_array_equal(plain, model.generate(IDS, **settings).sequences)


def test_arguments_that_do_not_fit_are_refused(model):
    with pytest.raises(ValueError, match="decoder_input_ids and their mask are for encoder-dec"):
        model.generate(IDS, decoder_input_ids=IDS)
    with pytest.raises(ValueError, match=r"attention_mask must have the shape of its ids \(2, 4\)"):
        model.generate(IDS, attention_mask=IDS[:, :3])
    with pytest.raises(ValueError, match=r"input_ids must have shape \(rows, tokens\), at least"):
        model.generate(IDS[:, :0])


def test_decoder_prompts_that_do_not_fit_their_sources_are_refused():
    sizes = {"d_model": 12, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    model = xformer.FlaxUMT5ForConditionalGeneration(xformer.UMT5Config(vocab_size=19, **sizes))
    with pytest.raises(ValueError, match="decoder_input_ids must have 2 rows, one for each of"):
        model.generate(IDS, decoder_input_ids=np.zeros((1, 1), int))
    programs = [
        compilations(
            lambda most=most, width=width: model.generate(
                IDS, decoder_input_ids=np.full((2, width), 7), max_new_tokens=most
            )
        )
        for most, width in [(5, 2), (4, 9), (4, 30)]
    ]
    assert [any("_search" in name for name in one) for one in programs] == [True, False, False]
    of_none = model.generate(IDS, decoder_input_ids=np.zeros((2, 0), int)).sequences
    np.testing.assert_array_equal(of_none, model.generate(IDS).sequences)


def test_a_stream_gives_the_text_that_generate_writes():
    tokenizer = xformer.XGLMTokenizer.from_pretrained(FIXTURES / "xglm")
    config = XGLMConfig(vocab_size=len(tokenizer), d_model=32, ffn_dim=20, num_layers=1)
    config.init_std = 0.8
    model = FlaxXGLMForCausalLM(config, seed=1)
    ids = tokenizer("The value", return_tensors="np").input_ids
    for settings in ({}, {"do_sample": True, "top_k": 9}):
        whole = model.generate(ids, max_length=14, **settings).sequences[0]
        pieces = [*model.stream("The value", tokenizer, max_length=14, **settings)]
        text = tokenizer.decode(whole, skip_special_tokens=True)
        assert len(pieces) > 5 and "The value" + "".join(pieces) == text
    with pytest.raises(ValueError, match="a stream needs num_beams=1"):
        model.stream("The value", tokenizer, num_beams=2)  # not at the first piece
    with pytest.raises(ValueError, match="leaves no room after a prompt of"):
        model.stream("The value", tokenizer, max_length=2)


@pytest.mark.parametrize(
    "name, class_name",
    [
        ("xglm_gen", "FlaxXGLMForCausalLM"),
        ("bb_gen", "FlaxBigBirdForCausalLM"),
        ("bb_sparse_clm", "FlaxBigBirdForCausalLM"),
        ("umt5_gen", "FlaxUMT5ForConditionalGeneration"),
    ],
)
def test_cached_scores_are_those_of_full_forwards(parity_folder, name, class_name):
    folder = parity_folder / "models" / name
    if not folder.is_dir():
        pytest.skip("needs the full set of recorded models")
    model = getattr(xformer, class_name).from_pretrained(folder)
    ids = np.random.default_rng(1).integers(3, 90, (3, 7))
    mask = np.ones_like(ids)
    side = slice(4, None) if model.config.is_encoder_decoder else slice(None, 3)
    mask[1, side] = 0
    settings = {"attention_mask": mask, "max_new_tokens": 9, "min_new_tokens": 9}
    cached = model.generate(ids, output_scores=True, **settings)
    full = model.generate(ids, output_scores=True, use_cache=False, **settings)
    np.testing.assert_array_equal(cached.sequences, full.sequences)
    scale = np.abs(full.scores[np.isfinite(full.scores)]).max()
    np.testing.assert_allclose(cached.scores, full.scores, rtol=0, atol=1e-5 * scale)


def test_rows_that_outgrow_a_table_of_positions_are_refused():
    config = xformer.BigBirdConfig(
        vocab_size=19, hidden_size=12, num_hidden_layers=1, num_attention_heads=3,
        intermediate_size=20, max_position_embeddings=9, is_decoder=True,
        attention_type="original_full", eos_token_id=0,
    )  # fmt: skip
    model = xformer.FlaxBigBirdForCausalLM(config)
    # All positions can be used: there is no bucket where one would outgrow the table.
    assert model.generate(IDS, min_new_tokens=5, max_new_tokens=5).sequences.shape == (2, 9)
    with pytest.raises(ValueError, match="10 tokens are more than .*max_position_embeddings=9"):
        model.generate(IDS, max_new_tokens=6)


DRAWS = 20_000


@pytest.mark.parametrize(
    "settings",
    [{"top_k": 0}, {"top_k": 6, "temperature": 0.7}, {"top_p": 0.8, "min_p": 0.05}],
    ids=str,
)
def test_generate_draws_tokens_as_often_as_they_are_likely(model, settings):
    drawn = model.generate(
        IDS[:1],
        do_sample=True,
        num_return_sequences=DRAWS,
        max_new_tokens=1,
        output_scores=True,
        **settings,
    )
    counts = np.bincount(drawn.sequences[:, 4], minlength=19)
    expected = DRAWS * np.asarray(jax.nn.softmax(drawn.scores[0, 0]))
    assert counts[expected == 0].sum() == 0
    logits = np.asarray(model(IDS[:1]).logits[0, -1]) / settings.get("temperature", 1.0)
    kept = expected > 0
    odds = np.exp(logits[kept] - logits[kept].max())
    np.testing.assert_allclose(expected[kept], DRAWS * odds / odds.sum(), rtol=1e-4)
    likely = expected > 5  # below, the statistic is no chi-square any more
    chi_square = ((counts - expected)[likely] ** 2 / expected[likely]).sum()
    assert chi_square < 63  # one in a million at eighteen degrees of freedom


def test_a_loop_of_ones_own_decodes_what_generate_does():
    config = xformer.UMT5Config(
        vocab_size=19, d_model=12, d_kv=4, d_ff=16, num_layers=2, num_heads=2, num_decoder_layers=2
    )
    model = xformer.FlaxUMT5ForConditionalGeneration(config, seed=3)
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0]])
    expected = model.generate(IDS, attention_mask=mask, max_new_tokens=5, min_new_tokens=5)
    token = np.zeros((2, 1), np.int32)
    given = model.prepare_inputs_for_generation(
        token, 6, attention_mask=mask, encoder_outputs=model.encode(IDS, mask)
    )
    written = [token]
    for _ in range(5):
        out = model.decode(token, **given)
        scores = np.array(out.logits[:, -1])
        scores[:, config.eos_token_id] = -np.inf  # as min_new_tokens has it
        token = scores.argmax(-1)[:, None].astype(np.int32)
        given = model.update_inputs_for_generation(out, given)
        written.append(token)
    np.testing.assert_array_equal(np.concatenate(written, axis=1), expected.sequences)


def test_every_way_to_write_begins_with_the_token_that_is_set():
    folder = FIXTURES / "umt5"
    tokenizer = xformer.AutoTokenizer.from_pretrained(folder)
    config = xformer.UMT5Config(
        vocab_size=len(tokenizer), d_model=12, d_kv=4, d_ff=16, num_layers=1, num_heads=2
    )
    model = xformer.FlaxUMT5ForConditionalGeneration(config, seed=5)
    settings = {"max_new_tokens": 6, "min_new_tokens": 6}
    texts = {}
    for start in (0, 17):
        ids = tokenizer("a dog", return_tensors="np")
        whole = model.generate(**ids, decoder_start_token_id=start, **settings).sequences[0, 1:]
        text = tokenizer.decode(whole.tolist(), skip_special_tokens=True)
        pieces = model.stream("a dog", tokenizer, decoder_start_token_id=start, **settings)
        texts[start] = "".join(pieces)
        assert texts[start] == text
    assert texts[0] != texts[17]


CROSS = {"vocab_size": 19, "max_position_embeddings": 64, "add_cross_attention": True}
READING = {
    "XGLM": {"d_model": 12, "ffn_dim": 20, "num_layers": 2, "attention_heads": 3, "init_std": 0.7},
    "BigBird": {
        "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2, "is_decoder": True,
        "num_attention_heads": 3, "attention_type": "original_full", "initializer_range": 0.7,
        "eos_token_id": 2, "bos_token_id": 1, "sep_token_id": 3,
    },
}  # fmt: skip
STATES = np.random.default_rng(1).normal(size=(2, 5, 12)).astype(np.float32)
STATE_MASK = np.array([[1, 1, 1, 0, 0], [1] * 5])


@pytest.fixture(scope="module", params=READING)
def reading(request):
    """A decoder with cross-attention."""
    config = getattr(xformer, f"{request.param}Config")(**CROSS, **READING[request.param])
    return getattr(xformer, f"Flax{request.param}ForCausalLM")(config, seed=3)


@pytest.mark.parametrize("mask", [None, STATE_MASK])
def test_decoders_read_encoder_states(reading, mask):
    states = {"encoder_hidden_states": STATES, "encoder_attention_mask": mask}
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "output_scores": True}
    out = reading.generate(IDS, **states, **settings)
    full = np.moveaxis(np.array(reading(out.sequences[:, :-1], **states).logits)[:, 3:], 1, 0)
    full[..., reading.config.eos_token_id] = -np.inf
    np.testing.assert_allclose(out.scores, full, rtol=0, atol=1e-4)
    if mask is not None:
        changed = np.where(mask[..., None] == 1, STATES, 9.0)
        hidden = reading.generate(IDS, **{**states, "encoder_hidden_states": changed}, **settings)
        np.testing.assert_array_equal(hidden.scores, out.scores)


@pytest.mark.parametrize(
    "settings",
    [{"num_beams": 3, "num_return_sequences": 2}, {"do_sample": True, "num_return_sequences": 2}],
    ids=str,
)
def test_every_search_reads_encoder_states(reading, settings):
    states = {"encoder_hidden_states": STATES, "encoder_attention_mask": STATE_MASK}
    settings = {"max_new_tokens": 6, **settings}
    out = reading.generate(IDS, **states, **settings)
    full = reading.generate(IDS, **states, use_cache=False, **settings)
    np.testing.assert_array_equal(out.sequences, full.sequences)
    without = reading.generate(IDS, **settings).sequences
    assert out.sequences.shape != without.shape or (out.sequences != without).any()
    alone = reading.generate(IDS[:1], encoder_hidden_states=STATES[:1, :3], **settings)
    if "num_beams" in settings:  # of each row its own states, and no more than the mask shows
        width = min(alone.sequences.shape[1], out.sequences.shape[1])
        np.testing.assert_array_equal(out.sequences[:2, :width], alone.sequences[:, :width])


def test_encoder_states_are_arrays_of_the_pure_function_too(reading):
    given = {"encoder_hidden_states": STATES, "encoder_attention_mask": STATE_MASK}

    def pure(params, ids, states, mask):
        return xformer.generate(
            reading.module, params, ids, None, jax.random.key(0), max_new_tokens=6,
            encoder_hidden_states=states, encoder_attention_mask=mask,
        ).sequences  # fmt: skip

    sequences = jax.jit(pure)(reading.params, IDS.astype(np.int32), *given.values())
    expected = np.asarray(reading.generate(IDS, max_new_tokens=6, **given).sequences)
    np.testing.assert_array_equal(sequences[:, : expected.shape[1]], expected)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"encoder_attention_mask": STATE_MASK}, "encoder_attention_mask needs encoder_hidden_st"),
        ({"encoder_hidden_states": STATES[:1]}, r"must have shape \(2, length, width\), a row for"),
        (
            {"encoder_hidden_states": STATES, "encoder_attention_mask": IDS},
            r"the shape of its states \(2, 5\), got \(2, 4\)",
        ),
    ],
)
def test_encoder_states_that_do_not_fit_are_refused(reading, model, arguments, message):
    with pytest.raises(ValueError, match=message):
        reading.generate(IDS, **arguments)


def test_encoder_states_are_for_decoders_with_cross_attention(model):
    with pytest.raises(ValueError, match="need XGLMConfig.add_cross_attention=True"):
        model.generate(IDS, encoder_hidden_states=STATES)
    sizes = {"d_model": 12, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    umt5 = xformer.FlaxUMT5ForConditionalGeneration(xformer.UMT5Config(vocab_size=19, **sizes))
    with pytest.raises(ValueError, match="are for decoders with cross-attention: the encoder of"):
        umt5.generate(IDS, encoder_hidden_states=STATES)


def test_states_of_one_bucket_share_one_program(reading):
    def generate(length):
        states = np.ones((2, length, 12), np.float32)
        return lambda: reading.generate(IDS, encoder_hidden_states=states, max_new_tokens=2)

    assert any("_search" in name for name in compilations(generate(33)))
    assert not any("_search" in name for name in compilations(generate(41)))
