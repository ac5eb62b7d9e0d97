import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from xformer.tokenization.xglm import XGLMTokenizer

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture
def tokenizer():
    return XGLMTokenizer.from_pretrained(FIXTURES / "xglm")


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(FIXTURES / "xglm", tmp_path / "tokenizer"))


def _change_config(folder, **fields):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_layout_is_that_of_fairseq(tokenizer):
    last = tokenizer.vocab_size - 1
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3, last - 6, last]) == [
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
        "<madeupword0>",
        "<madeupword6>",
    ]
    assert tokenizer.convert_tokens_to_ids(["<madeupword6>", "<madeupword7>"]) == [last, 3]
    ids = [tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id]
    assert [*ids, tokenizer.unk_token_id, tokenizer.sep_token_id, tokenizer.cls_token_id] == [
        *[0, 1, 2, 3],
        *[2, 0],
    ]


def test_documents_begin_and_end_with_the_end_token(tokenizer):
    documents = tokenizer.encode_documents(["What is a class?", ""])
    assert [document.dtype for document in documents] == [np.int32, np.int32]
    assert documents[0].tolist() == [*tokenizer.encode("What is a class?"), 2]
    assert documents[1].tolist() == [2, 2]


def test_documents_cannot_end_themselves(tokenizer):
    [document] = tokenizer.encode_documents(["a </s> b <s> <pad>"])
    assert 2 in tokenizer.encode("a </s> b", add_special_tokens=False)
    assert not set(document[1:-1].tolist()) & {0, 1, 2}


def test_unknown_characters_are_the_unknown_token(tokenizer):
    [document] = tokenizer.encode_documents(["\u2603\u2603 a"])
    assert document.tolist() == [*tokenizer.encode("\u2603\u2603 a"), 2]
    assert 3 in document


def test_saved_folder_is_that_of_transformers(tokenizer, tmp_path):
    paths = tokenizer.save_pretrained(tmp_path / "saved")
    assert sorted(Path(path).name for path in paths) == sorted(
        path.name for path in (FIXTURES / "xglm").iterdir()
    )
    for path in (FIXTURES / "xglm").glob("*.json"):
        assert (tmp_path / "saved" / path.name).read_bytes() == path.read_bytes()
    again = XGLMTokenizer.from_pretrained(tmp_path / "saved")
    assert again.fingerprint() == tokenizer.fingerprint()
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    (tmp_path / "usual").mkdir()
    assert (tmp_path / "saved").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_saving_into_a_folder_keeps_other_files(tokenizer, tmp_path):
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "config.json").write_text("{}")
    tokenizer.save_pretrained(tmp_path / "saved")
    assert len(list((tmp_path / "saved").iterdir())) == 4


def test_fingerprint_tells_models_and_special_tokens_apart(tokenizer, folder):
    other = XGLMTokenizer.from_pretrained(FIXTURES / "xglm_bpe")
    _change_config(folder, eos_token="<s>")
    changed = XGLMTokenizer.from_pretrained(folder)
    assert changed.eos_token_id == 0
    fingerprints = {one.fingerprint() for one in (tokenizer, other, changed)}
    assert len(fingerprints) == 3 and all(len(one) == 64 for one in fingerprints)


def test_clean_up_joins_punctuation(folder):
    text = "a . b ? do n't"
    assert (
        XGLMTokenizer.from_pretrained(folder).decode(
            XGLMTokenizer.from_pretrained(folder).encode(text, add_special_tokens=False)
        )
        == text
    )
    _change_config(folder, clean_up_tokenization_spaces=True)
    tokenizer = XGLMTokenizer.from_pretrained(folder)
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == "a. b? don't"


def test_missing_model_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no sentencepiece\.bpe\.model"):
        XGLMTokenizer.from_pretrained(tmp_path)


def test_damaged_model_is_refused(folder):
    (folder / "sentencepiece.bpe.model").write_bytes(b"no model")
    with pytest.raises(ValueError, match="must be a SentencePiece model"):
        XGLMTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokenizer_class": "BertTokenizer"}, "tokenizer_class must be one of"),
        ({"sp_model_kwargs": {"model_proto": "x"}}, "sp_model_kwargs must have no keys but"),
        ({"eos_token": 5}, "eos_token must be a text or an object with its content, got 5"),
        ({"added_tokens_decoder": {"2009": {"content": "<x>"}}}, "must leave no gap, got 2009"),
    ],
)
def test_what_cannot_be_honoured_is_refused(folder, fields, message):
    _change_config(folder, **fields)
    with pytest.raises(ValueError, match=message):
        XGLMTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000])
def test_malformed_config_is_refused(folder, content):
    (folder / "tokenizer_config.json").write_text(content)
    with pytest.raises(
        ValueError, match=r"tokenizer_config\.json (must hold a JSON object|is not JSON)"
    ):
        XGLMTokenizer.from_pretrained(folder)


def test_ids_outside_of_the_vocabulary_are_refused(tokenizer):
    for index in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match=r"token ids must be in 0\.\.2007, got"):
            tokenizer.decode([index])


def test_documented_attributes_and_methods_are_there():
    class Shouting(XGLMTokenizer):
        def _tokenize(self, text):
            return list(text)

        def _convert_token_to_id(self, token):
            return ord(token) if len(token) == 1 else super()._convert_token_to_id(token)

        def _convert_id_to_token(self, index):
            return chr(index).upper() if index > 3 else super()._convert_id_to_token(index)

    tokenizer = Shouting(FIXTURES / "xglm" / "sentencepiece.bpe.model")
    assert (tokenizer.fairseq_offset, tokenizer.num_madeup_words) == (1, 7)
    assert tokenizer("ab")["input_ids"] == [2, 97, 98]
    assert tokenizer.decode([97, 98], spaces_between_special_tokens=False) == "AB"
