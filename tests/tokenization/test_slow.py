"""The slow kind, in what the comparisons with recorded and live references do not reach."""

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken

from xformer.tokenization.sentencepiece import SentencePieceTokenizer
from xformer.tokenization.xglm import XGLMTokenizer

FIXTURES = Path(__file__).parent / "fixtures"
MODEL = FIXTURES / "xglm_bpe" / "sentencepiece.bpe.model"
TEXT = "the class </s> <x> <y> b"


@pytest.fixture
def tokenizer():
    return XGLMTokenizer.from_pretrained(FIXTURES / "xglm_bpe")


def test_split_special_tokens_holds_for_texts_and_batches(tokenizer):
    whole = tokenizer("a </s> b")["input_ids"]
    split = tokenizer("a </s> b", split_special_tokens=True)["input_ids"]
    assert whole.count(2) == 2 and split.count(2) == 1
    assert tokenizer(["a </s> b"], split_special_tokens=True)["input_ids"] == [split]
    words = tokenizer(["a </s> b"], is_split_into_words=True, split_special_tokens=True)
    assert words["input_ids"] == split
    assert tokenizer.tokenize("</s>", split_special_tokens=True) != ["</s>"]
    literal = XGLMTokenizer.from_pretrained(FIXTURES / "xglm_bpe", split_special_tokens=True)
    assert literal("a </s> b")["input_ids"] == split


def test_tokenize_splits_the_text_alone_as_the_documented_slow_class(tokenizer):
    tokens = tokenizer.tokenize("a \u2603")
    assert "\u2603" in tokens  # as it is written, though its id is that of the unknown token
    assert tokenizer.tokenize("a \u2603", pair="b", add_special_tokens=True) == tokens


def test_documents_split_at_added_tokens_that_are_not_special(tokenizer):
    plain = tokenizer.encode_documents([TEXT, ""])
    tokenizer.add_tokens(["<x>", AddedToken("<y>", special=True)])
    documents = tokenizer.encode_documents([TEXT, ""])
    assert documents[1].tolist() == plain[1].tolist() == [2, 2]
    ids = documents[0].tolist()
    assert ids.count(2008) == 1 and 2009 not in ids and ids.count(2) == 2
    assert documents[0].dtype == np.int32
    before, after = (tokenizer.encode_documents([one])[0] for one in TEXT.split("<x>"))
    assert ids == [*before[:-1], 2008, *after[1:]]


def test_fingerprint_is_of_tokens_flags_and_settings(tokenizer, tmp_path):
    tokenizer.add_tokens(["<x>", "<y>"])
    tokenizer.save_pretrained(tmp_path / "saved")
    again = XGLMTokenizer.from_pretrained(tmp_path / "saved")
    assert again.fingerprint() == tokenizer.fingerprint()
    others = []
    for tokens in ([], ["<x>"], ["<y>", "<x>"], ["<x>", AddedToken("<y>", lstrip=True)]):
        others.append(XGLMTokenizer.from_pretrained(FIXTURES / "xglm_bpe"))
        others[-1].add_tokens(tokens)
    others.append(copy.deepcopy(again))
    others[-1].pad_token = "</s>"
    others.append(copy.deepcopy(again))
    others[-1].clean_up_tokenization_spaces = True
    assert len({one.fingerprint() for one in (tokenizer, *others)}) == 7


def test_fingerprint_does_not_depend_on_the_order_in_files():
    added = {2008: AddedToken("<x>"), 2009: AddedToken("<y>", special=True)}
    one = XGLMTokenizer(MODEL, added_tokens_decoder=added)
    other = XGLMTokenizer(MODEL, added_tokens_decoder=dict(reversed(added.items())))
    assert one.fingerprint() == other.fingerprint()


@pytest.mark.parametrize(
    ("name", "fingerprint"),
    [
        ("xglm", "efcee79a8a543465b574582c3b9cad6b819ead22410aed9bab318739c9045343"),
        ("xglm_bpe", "cc9fbba381eedbaea3371880cd502f641ab7e7dc5e2e8064aad6c0d41ce2efad"),
    ],
)
def test_fingerprints_that_corpora_and_checkpoints_hold_stay_what_they_were(
    name, fingerprint, tmp_path
):
    tokenizer = XGLMTokenizer.from_pretrained(FIXTURES / name)
    assert tokenizer.fingerprint() == fingerprint
    # Nor do the files that say the same in other words change it.
    bare = XGLMTokenizer(FIXTURES / name / "sentencepiece.bpe.model")
    assert bare.fingerprint() == fingerprint
    tokenizer.save_pretrained(tmp_path / "saved")
    assert XGLMTokenizer.from_pretrained(tmp_path / "saved").fingerprint() == fingerprint


def test_fingerprint_tells_the_ids_of_special_tokens_apart():
    words = {2001: "<madeupword0>", 2002: "<madeupword1>"}
    swapped = {2001: "<madeupword1>", 2002: "<madeupword0>"}
    one, other = (
        XGLMTokenizer(
            MODEL, added_tokens_decoder={i: AddedToken(w, special=True) for i, w in table.items()}
        )
        for table in (words, swapped)
    )
    assert one.fingerprint() == XGLMTokenizer(MODEL).fingerprint() != other.fingerprint()


def test_pickles_and_copies_are_whole_and_independent(tokenizer):
    tokenizer.add_tokens("<x>")
    for copied in (pickle.loads(pickle.dumps(tokenizer)), copy.deepcopy(tokenizer)):
        assert copied.encode(TEXT) == tokenizer.encode(TEXT)
        assert copied.fingerprint() == tokenizer.fingerprint()
        copied.add_tokens("<y>")
        assert len(copied) == len(tokenizer) + 1


def test_sampled_pieces_differ_and_make_no_documents(tmp_path):
    sampling = {"enable_sampling": True, "nbest_size": -1, "alpha": 0.1}
    model = FIXTURES / "xglm" / "sentencepiece.bpe.model"
    tokenizer = XGLMTokenizer(model, sp_model_kwargs=sampling)
    found = {tuple(tokenizer.encode("the statement executes")) for _ in range(20)}
    assert len(found) > 1
    with pytest.raises(ValueError, match="enable_sampling of sp_model_kwargs must be off"):
        tokenizer.encode_documents(["a"])
    tokenizer.save_pretrained(tmp_path / "saved")
    assert XGLMTokenizer.from_pretrained(tmp_path / "saved").sp_model_kwargs == sampling
    plain = XGLMTokenizer(model)
    assert plain.fingerprint() != tokenizer.fingerprint()


def test_unknown_token_that_the_vocabulary_lacks_is_added():
    tokenizer = XGLMTokenizer(MODEL, unk_token="<?>")
    assert tokenizer.unk_token_id == 2008 == tokenizer.encode("\u2603")[-1]
    assert tokenizer.encode_documents(["\u2603"])[0].tolist()[-2] == 2008
    tokenizer.unk_token = None
    assert tokenizer.convert_tokens_to_ids("\u2603") is None


def test_text_outside_of_the_vocabulary_needs_an_unknown_token():
    tokenizer = XGLMTokenizer(MODEL)
    tokenizer.unk_token = None
    assert tokenizer.encode_documents(["a"])[0].tolist() == [*tokenizer.encode("a"), 2]
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_documents([text])):
        with pytest.raises(ValueError, match="is not in the vocabulary, .*set unk_token, which is"):
            encode("\u2603")


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ([None], {}, "text or text_target must be given"),
        ([5], {}, "text must be a str, a list of str, .* got a int"),
        ([[5]], {}, "text must be a str, a list of str, .* got a list of 1"),
        (["a", 5], {}, "text must be a str, .* got a int"),
        ([[]], {}, "a batch must have at least one text"),
        ([["a", "b"], ["c"]], {}, "text_pair must be a list as long as text, 2, got a list of 1"),
        ([["a"], "b"], {}, "text_pair must be a list as long as text, 1, got a str"),
        ([[["a", "b", "c"]]], {}, "each of a batch must be a text or a pair .* a list of 3"),
        ([[]], {"is_split_into_words": True}, r"a text must be a str, or a list .* got \[\]"),
        (["a"], {"return_offsets_mapping": True}, "needs a fast tokenizer, XGLMTokenizer is slow"),
        (["a"], {"return_overflowing_tokens": True}, "needs max_length, got None"),
        (
            ["a", "b"],
            {"return_overflowing_tokens": True, "max_length": 3, "truncation": True},
            "with pairs needs truncation='only_first' or 'only_second'",
        ),
        (
            ["a"],
            {"return_token_type_ids": True, "add_special_tokens": False},
            "return_token_type_ids=True needs add_special_tokens=True",
        ),
    ],
)
def test_calls_that_cannot_be_meant_are_refused(tokenizer, arguments, options, message):
    with pytest.raises(ValueError, match=message):
        tokenizer(*arguments, **options)


def test_padding_takes_encodings_of_every_form(tokenizer):
    encoded = [tokenizer(text) for text in ("a b c", "d")]
    padded = tokenizer.pad(encoded)
    assert padded["input_ids"] == tokenizer(["a b c", "d"], padding=True)["input_ids"]
    for kind, dtype in (("np", np.int64), ("jax", np.int32)):
        arrays = tokenizer.pad([tokenizer(t, return_tensors=kind) for t in ("a b c", "d")][0])
        assert arrays.input_ids.dtype == dtype
    masked = tokenizer.pad(encoded, return_attention_mask=False)
    assert list(map(len, masked["attention_mask"])) == list(map(len, masked["input_ids"]))


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        ([], "encoded_inputs must hold at least one encoding"),
        ({"ids": [1]}, "what is padded must have input_ids, got ids"),
        ({"input_ids": [[1], [2]], "labels": [1]}, "labels must have a row for each of 2, got 1"),
    ],
)
def test_what_is_no_encoding_is_not_padded(tokenizer, encoded, message):
    with pytest.raises(ValueError, match=message):
        tokenizer.pad(encoded)


def test_truncation_that_cannot_be_is_told(tokenizer, caplog):
    ids = tokenizer("a b c d", "e", truncation="only_second", max_length=4)["input_ids"]
    assert len(ids) > 4
    [record] = [one for one in caplog.records if one.levelname == "ERROR"]
    assert "the second sequence has only 1" in record.message


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lower": True}, TypeError, "XGLMTokenizer has no argument lower; it takes bos_token"),
        ({"padding_side": "top"}, ValueError, "padding_side must be 'right' or 'left', got 'top'"),
        (
            {"model_max_length": 0},
            ValueError,
            "model_max_length must be positive and finite, got 0",
        ),
        ({"model_max_length": "9"}, ValueError, "model_max_length must be a int, got '9'"),
        ({"split_special_tokens": 1}, ValueError, "split_special_tokens must be a bool, got 1"),
        ({"model_input_names": ["ids"]}, ValueError, "input_ids first, got"),
        ({"model_input_names": "ids"}, ValueError, "model_input_names must be a list"),
        ({"extra_special_tokens": {"a": "b"}}, ValueError, "extra_special_tokens must be empty"),
        ({"mask_token": 5}, ValueError, "mask_token must be of str or AddedToken"),
        ({"sp_model_kwargs": {"alpha": 0, "x": 1}}, ValueError, "must have no keys but"),
        ({"added_tokens_decoder": {-1: AddedToken("x")}}, ValueError, "ids must be whole numbers"),
        ({"added_tokens_decoder": {2010: AddedToken("x")}}, ValueError, "must leave no gap"),
        ({"added_tokens_decoder": {5: "x"}}, ValueError, "5 must be an object with its content"),
    ],
)
def test_arguments_that_no_tokenizer_has_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        XGLMTokenizer(MODEL, **options)


def test_settings_of_a_tokenizer_are_saved_and_shown(tmp_path):
    options = {
        "padding_side": "left",
        "truncation_side": "left",
        "model_max_length": 30,
        "clean_up_tokenization_spaces": True,
        "model_input_names": ["input_ids"],
        "split_special_tokens": True,
    }
    XGLMTokenizer(MODEL, **options).save_pretrained(tmp_path / "saved")
    again = XGLMTokenizer.from_pretrained(tmp_path / "saved")
    assert {key: getattr(again, key) for key in options} == options
    assert list(again("a")) == ["input_ids"]
    assert again.name_or_path == str(tmp_path / "saved") and again.init_kwargs["padding_side"]
    for shown in ("XGLMTokenizer(", "vocab_size=2008", "padding_side='left'", "2: AddedToken("):
        assert shown in repr(again)


def test_files_take_a_prefix_and_only_the_old_format(tokenizer, tmp_path):
    tokenizer.add_tokens("<x>")
    paths = tokenizer.save_pretrained(tmp_path / "saved", filename_prefix="a")
    names = ["tokenizer_config.json", "special_tokens_map.json", "sentencepiece.bpe.model"]
    assert [Path(path).name for path in paths] == [f"a-{n}" for n in (*names, "added_tokens.json")]
    [model] = tokenizer.save_vocabulary(tmp_path / "saved")
    assert Path(model).read_bytes() == MODEL.read_bytes()
    with pytest.raises(ValueError, match="legacy_format must be True or None for XGLMTokenizer"):
        tokenizer.save_pretrained(tmp_path / "other", legacy_format=False)
    assert not (tmp_path / "other").exists()


def test_ids_of_the_model_are_those_of_a_family_that_says_no_others():
    tokenizer = SentencePieceTokenizer(MODEL, unk_token="<unk>", eos_token="</s>")
    assert len(tokenizer) == tokenizer.vocab_size == 2000
    assert tokenizer.convert_tokens_to_ids(["<unk>", "<s>", "</s>", "\u2603"]) == [0, 1, 2, 0]
    ids = tokenizer.encode("the class</s>")
    assert ids == [*tokenizer.sp_model.encode("the class"), 2]
    assert tokenizer.decode(ids) == "the class</s>"
    assert tokenizer.get_vocab()["</s>"] == 2
