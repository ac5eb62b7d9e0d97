import copy
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from xformer.tokenization.fast import PreTrainedTokenizerFast
from xformer.tokenization.xglm import XGLMTokenizer
from xformer.tokenization.xglm_fast import XGLMTokenizerFast

FIXTURES = Path(__file__).parent / "fixtures"
MODEL = FIXTURES / "xglm" / "sentencepiece.bpe.model"


@pytest.fixture
def tokenizer():
    return XGLMTokenizerFast.from_pretrained(FIXTURES / "xglm")


@pytest.fixture
def saved(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "saved", legacy_format=False)
    return tmp_path / "saved"


def _words():
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return backend


def _change(path, change):
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))


@pytest.mark.parametrize("name", ["xglm", "xglm_bpe"])
def test_documents_are_literal_and_end(name):
    tokenizer = XGLMTokenizerFast.from_pretrained(FIXTURES / name)
    documents = tokenizer.encode_documents(["Hello \u2603", "", "a </s> b<s> <pad><madeupword0>"])
    assert [document.dtype for document in documents] == [np.int32] * 3
    assert documents[0].tolist() == [*tokenizer("Hello \u2603")["input_ids"], 2]
    assert documents[1].tolist() == [2, 2]
    literal = documents[2][1:-1].tolist()
    assert not set(literal) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(literal) == "a </s> b<s> <pad><madeupword0>"


def test_added_tokens_in_documents_get_their_ids_unless_special():
    for kind in (XGLMTokenizerFast, XGLMTokenizer):
        tokenizer = kind.from_pretrained(FIXTURES / "xglm")
        tokenizer.encode_documents(["a"])
        tokenizer.add_special_tokens({"mask_token": "<mask>"})
        tokenizer.add_tokens(["<new>"])
        [document] = tokenizer.encode_documents(["a <new> <mask> b"])
        assert 2009 in document.tolist() and 2008 not in document.tolist()


def test_merges_to_special_tokens_are_none_in_documents():
    vocabulary = {"[UNK]": 0, "a": 1, "b": 2, "ab": 3, "c": 4, "abc": 5}
    merges = [("a", "b"), ("ab", "c")]
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="[UNK]"))
    tokenizer = XGLMTokenizerFast(tokenizer_object=backend)
    assert tokenizer.encode_documents(["abc"])[0][1:-1].tolist() == [5]
    tokenizer.add_special_tokens({"mask_token": "ab"})
    assert tokenizer.encode_documents(["abc"])[0][1:-1].tolist() == [1, 2, 4]


def test_documents_are_encoded_with_what_the_backend_has_become(tokenizer):
    [plain] = tokenizer.encode_documents(["HELLO"])
    backend = tokenizer.backend_tokenizer
    for normalizer in (normalizers.Lowercase(), normalizers.Replace("H", "y")):
        backend.normalizer = normalizer
        [changed] = tokenizer.encode_documents(["HELLO"])
        assert changed.tolist() == [*tokenizer("HELLO")["input_ids"], 2] != plain.tolist()
    literal = tokenizer._literal
    tokenizer("a", truncation=True, max_length=3)
    tokenizer.encode_documents(["HELLO"])
    assert tokenizer._literal is literal  # nothing that counts has changed


def test_documents_need_a_family_and_its_tokens(tokenizer):
    with pytest.raises(ValueError, match="of a family, got PreTrainedTokenizerFast: nothing says"):
        PreTrainedTokenizerFast(tokenizer_object=_words()).encode_documents(["a"])
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="eos_token must be set, and in the vocabulary; it is No"):
        tokenizer.encode_documents(["a"])


def test_calls_leave_no_trace_in_what_follows(tokenizer, tmp_path):
    plain = tokenizer("Hello world")
    files = {}
    for name in ("before", "after"):
        tokenizer.save_pretrained(tmp_path / name)
        files[name] = (tmp_path / name / "tokenizer.json").read_bytes()
        tokenizer("Hello </s>", split_special_tokens=True)
        tokenizer("Hello", padding="max_length", truncation=True, max_length=4)
    assert files["before"] == files["after"]
    assert tokenizer("Hello world") == plain
    tokenizer("Hello", padding="max_length", truncation=True, max_length=20)
    assert tokenizer.encode_documents(["Hello world"])[0].tolist() == [*plain["input_ids"], 2]
    tokenizer.add_tokens(["<new>"])
    tokenizer("Hello", truncation=True, max_length=2)
    assert tokenizer.encode_documents(["Hello world"])[0].tolist() == [*plain["input_ids"], 2]
    assert tokenizer("Hello </s>")["input_ids"][-1] == 2


def test_saved_folder_is_read_without_the_model(tokenizer, saved):
    assert sorted(path.name for path in saved.iterdir()) == [
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert '"tokenizer_class": "XGLMTokenizer"' in (saved / "tokenizer_config.json").read_text()
    again = XGLMTokenizerFast.from_pretrained(saved)
    assert again("Hello </s> world") == tokenizer("Hello </s> world")
    assert again.fingerprint() == tokenizer.fingerprint()
    assert not again.can_save_slow_tokenizer
    with pytest.raises(ValueError, match="must have been given a vocab_file to write one"):
        again.save_vocabulary(saved)
    with pytest.raises(ValueError, match="must have been given a vocab_file to write one"):
        again.save_pretrained(saved, legacy_format=True)
    again.save_pretrained(saved.parent / "second")
    for path in saved.iterdir():
        if path.name != "tokenizer.json":  # scores lose their last digits when they are read
            named = path.read_text().replace('"XGLMTokenizer"', '"XGLMTokenizerFast"')
            assert (saved.parent / "second" / path.name).read_text() == named


def test_tokenizer_file_wins_over_the_model(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "both")
    bpe = XGLMTokenizerFast.from_pretrained(FIXTURES / "xglm_bpe")
    bpe.save_pretrained(tmp_path / "bpe")
    shutil.copy(tmp_path / "bpe" / "tokenizer.json", tmp_path / "both")
    assert XGLMTokenizerFast.from_pretrained(tmp_path / "both")("Hello") == bpe("Hello")


def test_constructor_takes_model_file_and_object(tokenizer, saved):
    wanted = tokenizer("Hello </s> world")
    assert XGLMTokenizerFast(MODEL)("Hello </s> world") == wanted
    assert XGLMTokenizerFast(str(MODEL), str(saved / "tokenizer.json")).can_save_slow_tokenizer
    made = XGLMTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    assert made("Hello </s> world") == wanted
    made.add_tokens(["<new>"])
    assert len(made) == len(tokenizer) + 1
    with pytest.raises(ValueError, match="must have a tokenizer_file or a tokenizer_object, or a"):
        XGLMTokenizerFast()
    with pytest.raises(TypeError, match="has no argument sp_model_kwarg"):
        XGLMTokenizerFast(MODEL, sp_model_kwarg={})


def test_any_backend_has_the_documented_calls(tmp_path):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_words(), unk_token="[UNK]")
    assert tokenizer("a b c")["input_ids"] == [1, 2, 0]
    assert tokenizer.convert_tokens_to_ids(["b", "c"]) == [2, 0]
    assert tokenizer.decode([1, 2]) == tokenizer.convert_tokens_to_string(["a", "b"]) == "a b"
    assert tokenizer.decoder is None and tokenizer.vocab == {"[UNK]": 0, "a": 1, "b": 2}
    tokenizer.save_pretrained(tmp_path / "words")
    assert PreTrainedTokenizerFast.from_pretrained(tmp_path / "words")("b a")["input_ids"] == [2, 1]
    with pytest.raises(ValueError, match="must have a padding token"):
        tokenizer(["a", "b a"], padding=True)
    nameless = PreTrainedTokenizerFast(tokenizer_object=_words())
    assert nameless.convert_tokens_to_ids("c") is None


def test_sides_and_padding_of_a_backend_are_the_defaults():
    backend = _words()
    backend.enable_truncation(2, direction="left")
    backend.enable_padding(direction="left", pad_token="[UNK]", length=50)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert (tokenizer.truncation_side, tokenizer.padding_side) == ("left", "left")
    assert tokenizer.pad_token == "[UNK]"
    assert tokenizer("a b a")["input_ids"] == [1, 2, 1]
    assert tokenizer("a a b", truncation=True, max_length=1)["input_ids"] == [2]
    told = PreTrainedTokenizerFast(tokenizer_object=backend, truncation_side="right")
    assert told.truncation_side == "right"


def test_special_tokens_of_a_role_are_special_whatever_they_say():
    tokenizer = XGLMTokenizerFast(MODEL, mask_token=AddedToken("<mask>", special=False))
    assert tokenizer.added_tokens_decoder[2008].special
    assert tokenizer.decode([2008], skip_special_tokens=True) == ""
    assert XGLMTokenizerFast(MODEL, mask_token="<mask>").added_tokens_decoder[2008].special


def test_flags_of_a_special_token_replace_those_of_the_vocabulary(tokenizer):
    stripping = XGLMTokenizerFast(MODEL, eos_token=AddedToken("</s>", lstrip=True))
    assert stripping.added_tokens_decoder[2].lstrip and stripping.eos_token_id == 2
    assert stripping.tokenize("a \u2603 </s>") == ["\u2581a", "\u2581", "\u2603", " </s>"]
    assert list(stripping.added_tokens_decoder) == sorted(stripping.added_tokens_decoder)
    assert list(tokenizer.added_tokens_decoder) == [*range(4), *range(2001, 2008)]


def test_copies_are_independent(tokenizer):
    for twin in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        twin.add_tokens(["<new>"])
        assert len(twin) == 2009 and len(tokenizer) == 2008
        assert twin("a")["input_ids"] == tokenizer("a")["input_ids"]


def test_fingerprint_tells_tokenizers_apart(tokenizer):
    others = [
        XGLMTokenizerFast.from_pretrained(FIXTURES / "xglm_bpe"),
        XGLMTokenizerFast(MODEL, cls_token="</s>"),
        XGLMTokenizerFast(MODEL),
        XGLMTokenizer(MODEL),
    ]
    others[2].add_tokens(["<new>"])
    fingerprint = tokenizer.fingerprint()
    assert len({fingerprint, *(one.fingerprint() for one in others)}) == 5
    tokenizer("Hello", padding="max_length", truncation=True, max_length=4)
    assert tokenizer.fingerprint() == fingerprint == XGLMTokenizerFast(MODEL).fingerprint()


def test_texts_that_the_model_cannot_take_whole_are_told_of_once(caplog):
    tokenizer = XGLMTokenizerFast(MODEL, model_max_length=4)
    for _ in range(2):
        tokenizer(["Hi", "Hello world, how are you?"], truncation=True)
        tokenizer(["Hi", "Hello world, how are you?"], max_length=20, truncation=True)
        assert caplog.messages == []
    for _ in range(2):
        tokenizer(["Hi", "Hello world, how are you?"])
    assert ["model_max_length" in message for message in caplog.messages] == [True]


def test_empty_batch_is_empty(tokenizer):
    assert tokenizer([])["input_ids"] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"truncation": True, "max_length": 3, "stride": 5},
            "truncation='longest_first', max_length=3 and stride=5 must suit the texts",
        ),
        ({"truncation": "only_second", "max_length": 3}, "'only_second', max_length=3.* must suit"),
    ],
)
def test_settings_that_no_text_can_follow_are_refused(tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        tokenizer("Hello world, how are you?", **options)


def test_negative_ids_are_refused(tokenizer):
    for call in (tokenizer.decode, tokenizer.convert_ids_to_tokens):
        with pytest.raises(ValueError, match="token ids must be integers of 0 or more"):
            call([-1])


def test_panics_of_the_library_are_value_errors(tokenizer):
    """A damaged normalization table is found when a text needs it."""
    fields = json.loads(tokenizer.backend_tokenizer.to_str())
    table = {"type": "Precompiled", "precompiled_charsmap": "CAAAAP//////////YWJj"}
    fields["normalizer"] = table
    damaged = XGLMTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(fields)))
    with pytest.raises(ValueError, match="must suit the texts: index out of bounds"):
        damaged("Hello")
    with pytest.raises(ValueError, match="documents must be str .* index out of bounds"):
        damaged.encode_documents(["Hello"])


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"sentencepiece\.bpe\.model or tokenizer\.json"):
        XGLMTokenizerFast.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError):
        XGLMTokenizerFast(tmp_path / "none.model")


def _other_id(fields):
    fields["added_tokens"][-1]["id"] = 7


def _gap(fields):
    fields["model"]["vocab"] = {"a": 0, "b": 9}


def _same_id(fields):
    fields["model"]["vocab"] = {"a": 0, "b": 0}


def _no_text(fields):
    fields["model"]["vocab"][5] = [5, 0.0]


def _long(fields):
    fields["model"]["vocab"][5][0] = "a" * 513


def _many(fields):
    fields["model"]["vocab"] += [["a" * 500, 0.0]] * (6 * 2**20 // 500)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_other_id, "added_tokens must have the ids that the vocabulary gives them, got 7"),
        (_gap, "must number its 2 pieces without large gaps, got the id 9"),
        (_same_id, "must give every piece an id of its own"),
        (_no_text, r"must list \[piece, score\] pairs"),
        (_long, "must have at most 512 characters, got 513"),
        (_many, "must have at most 6291456 bytes altogether"),
        (lambda fields: fields.pop("model"), "vocab must be a list or an object"),
        (lambda fields: fields.update(model={"vocab": 3}), "vocab must be a list or an object"),
        (lambda fields: fields["model"].update(unk_id=10**6), "must be a file of the tokenizers"),
        (
            lambda fields: fields.update(decoder={"type": "None"}),
            "must be a file of the tokenizers",
        ),
        (lambda fields: fields.update(added_tokens=3), "added_tokens must be a list of objects"),
        (
            lambda fields: fields["added_tokens"][0].update(content="x" * 1001),
            "added_tokens must be a text of at most 1000 characters, got 1001",
        ),
        (
            lambda fields: fields["model"].update(unk_token="\u2603"),
            "model.unk_token must be in model.vocab, got '\u2603'",
        ),
    ],
)
def test_damaged_tokenizer_file_is_refused(saved, change, message):
    _change(saved / "tokenizer.json", change)
    with pytest.raises(ValueError, match=message):
        XGLMTokenizerFast.from_pretrained(saved)


@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000, '{"a": 1}', "\xff"])
def test_file_of_something_else_is_refused(saved, content):
    (saved / "tokenizer.json").write_text(content, "latin-1")
    with pytest.raises(ValueError, match=r"tokenizer\.json(:| must| is not JSON)"):
        XGLMTokenizerFast.from_pretrained(saved)


def test_large_tokenizer_file_is_refused(saved):
    with (saved / "tokenizer.json").open("r+b") as file:
        file.truncate(2**26 + 1)
    with pytest.raises(ValueError, match=r"tokenizer\.json must not be larger than"):
        XGLMTokenizerFast.from_pretrained(saved)


def test_added_tokens_of_other_ids_are_refused(saved):
    def move(fields):
        fields["added_tokens_decoder"]["2010"] = {"content": "<new>"}

    _change(saved / "tokenizer_config.json", move)
    with pytest.raises(ValueError, match="'<new>' must have the id 2008, got 2010"):
        XGLMTokenizerFast.from_pretrained(saved)
