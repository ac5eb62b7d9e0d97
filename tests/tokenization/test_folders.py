"""What the JSON files of a tokenizer folder may say, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import AddedToken

from xformer.tokenization.auto import AutoTokenizer
from xformer.tokenization.folders import MAX_CONFIG_BYTES, MAX_MODEL_BYTES
from xformer.tokenization.special_tokens import ROLES
from xformer.tokenization.xglm import XGLMTokenizer
from xformer.tokenization.xglm_fast import XGLMTokenizerFast

FIXTURES = Path(__file__).parent / "fixtures"
SIZE = 2008


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(FIXTURES / "xglm_bpe", tmp_path / "tokenizer"))


@pytest.fixture
def bare(folder):
    """A folder with nothing but the model."""
    for path in folder.glob("*.json"):
        path.unlink()
    return folder


def write(folder, name, content):
    (folder / name).write_text(json.dumps(content))


def test_model_alone_is_a_tokenizer(bare):
    tokenizer = XGLMTokenizer.from_pretrained(bare)
    assert len(tokenizer) == SIZE and tokenizer.encode("a </s>")[-1] == 2


def test_caller_wins_over_files_and_files_over_defaults(folder):
    fields = {"padding_side": "left", "model_max_length": 9, "pad_token": "</s>"}
    config = json.loads((folder / "tokenizer_config.json").read_text())
    write(folder, "tokenizer_config.json", config | fields)
    options = {"padding_side": "right", "additional_special_tokens": ["<x>"]}
    tokenizer = XGLMTokenizer.from_pretrained(folder, **options)
    assert (tokenizer.padding_side, tokenizer.model_max_length) == ("right", 9)
    assert tokenizer.pad_token_id == 2
    assert tokenizer.additional_special_tokens[0] == "<x>"
    assert tokenizer.convert_tokens_to_ids("<x>") == SIZE


def test_name_is_the_one_given(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    write(folder, "tokenizer_config.json", {"name_or_path": "somewhere/else"})
    assert XGLMTokenizer.from_pretrained("tokenizer").name_or_path == "tokenizer"
    assert AutoTokenizer.from_pretrained("tokenizer", tokenizer_type="xglm").name_or_path == (
        "tokenizer"
    )
    assert XGLMTokenizer.from_pretrained("tokenizer").vocab_file.endswith(".bpe.model")


def test_code_is_never_run(folder):
    with pytest.raises(ValueError, match="trust_remote_code must be False"):
        XGLMTokenizer.from_pretrained(folder, trust_remote_code=True)
    XGLMTokenizer.from_pretrained(folder, trust_remote_code=False)


def test_older_names_and_numbers_are_read(bare):
    write(bare, "tokenizer_config.json", {"max_len": 12, "something": {"else": 1}})
    assert XGLMTokenizer.from_pretrained(bare).model_max_length == 12
    write(bare, "tokenizer_config.json", {"max_len": 12, "model_max_length": 1e30})
    length = XGLMTokenizer.from_pretrained(bare).model_max_length
    assert isinstance(length, int) and length == int(1e30)


def test_special_tokens_file_wins_over_the_config_but_not_over_the_caller(bare):
    token = {"content": "<mask>", "lstrip": True}
    write(bare, "tokenizer_config.json", {"mask_token": "<old>", "eos_token": "<pad>"})
    write(bare, "special_tokens_map.json", {"mask_token": token, "eos_token": "<s>"})
    tokenizer = XGLMTokenizer.from_pretrained(bare, eos_token="</s>")
    assert (tokenizer.mask_token, tokenizer.eos_token) == ("<mask>", "</s>")
    added = tokenizer.added_tokens_decoder[SIZE]
    assert added.lstrip and added.special and not added.normalized


def test_table_of_the_config_is_the_whole_truth(folder):
    """Neither the older files nor `tokenizer.json` are looked at beside it."""
    for name in ("special_tokens_map.json", "added_tokens.json", "tokenizer.json"):
        (folder / name).write_text("no JSON")
    assert len(XGLMTokenizer.from_pretrained(folder)) == SIZE


def test_tokens_of_the_vocabulary_may_be_given_other_texts(folder):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"]["2001"]["content"] = "<turn>"
    config["additional_special_tokens"][0] = "<turn>"
    write(folder, "tokenizer_config.json", config)
    tokenizer = XGLMTokenizer.from_pretrained(folder)
    assert tokenizer.encode("<turn>") == [2, 2001]
    # The word that had the id is always there: it gets another.
    assert tokenizer.encode("<madeupword0>") == [2, SIZE] and len(tokenizer) == SIZE + 1


def decoder(**tokens):
    return {"added_tokens_decoder": {index.strip("_"): token for index, token in tokens.items()}}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer_config.json", {"auto_map": {}}, "auto_map must be absent; code"),
        ("tokenizer_config.json", {"tokenizer_class": ["x"]}, "tokenizer_class must be one of"),
        ("tokenizer_config.json", {"pad_token": ["<pad>"]}, "pad_token must be a text or an obj"),
        ("tokenizer_config.json", {"pad_token": {"content": 5}}, "pad_token must be a text or an"),
        ("tokenizer_config.json", {"additional_special_tokens": "<x>"}, "must be a list, got '<x>"),
        ("tokenizer_config.json", {"additional_special_tokens": [5]}, "must be a text or an obj"),
        ("tokenizer_config.json", {"padding_side": 5}, "padding_side must be 'right' or 'left'"),
        ("tokenizer_config.json", {"model_max_length": True}, "model_max_length must be a int"),
        ("tokenizer_config.json", {"model_max_length": -2}, "model_max_length must be positive"),
        (
            "tokenizer_config.json",
            {"sp_model_kwargs": {"alpha": "x"}},
            "alpha of sp_model_kwargs is",
        ),
        ("tokenizer_config.json", {"added_tokens_decoder": []}, "decoder must be an object, got"),
        ("tokenizer_config.json", decoder(x={"content": "<x>"}), "ids must be whole numbers.* x"),
        ("tokenizer_config.json", decoder(_12_={"content": ""}), "12 must not be empty; leave it"),
        ("tokenizer_config.json", decoder(_12_="<x>"), "12 must be an object with its content"),
        ("tokenizer_config.json", decoder(_12_={"content": "x", "lstrip": 1}), "lstrip must be tr"),
        (
            "tokenizer_config.json",
            decoder(_12_={"content": "<x>"}, _13_={"content": "<x>"}),
            "'<x>' must be one text with one id, 13",
        ),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"2008": {"content": "a"}, "02008": {"content": "b"}}},
            "'b' must be one text with one id",
        ),
        (
            "tokenizer_config.json",
            decoder(_2008_={"content": "a"}, _999999999_={"content": "b"}),
            "must leave no gap, got 999999999 for the last of 2",
        ),
        ("tokenizer_config.json", decoder(_9999999999_={"content": "b"}), "below 10.9, got 99999"),
        ("special_tokens_map.json", {"pad_token": 5}, "special_tokens_map.json: pad_token must"),
        ("special_tokens_map.json", {"additional_special_tokens": {}}, "must be a list, got {}"),
        ("added_tokens.json", {"<x>": "2008"}, None),
        ("added_tokens.json", {"<x>": -1}, "added_tokens.json: ids must be whole numbers.* -1"),
        ("added_tokens.json", {"<x>": 2.5}, "ids must be whole numbers below 10.9, got 2.5"),
        ("added_tokens.json", {"<x>": True}, "ids must be whole numbers below 10.9, got True"),
        ("added_tokens.json", {"<x>": 2008, "<y>": 2008}, "'<y>' must be one text with one id"),
        ("added_tokens.json", {"<x>": 2009}, "must leave no gap, got 2009 for the last of 1"),
        ("tokenizer.json", {"added_tokens": {}}, "tokenizer.json: added_tokens must be a list"),
        ("tokenizer.json", {"added_tokens": [5]}, "added_tokens must be objects, got"),
        ("tokenizer.json", {"added_tokens": [{"content": "a"}]}, "ids must be whole numbers.*None"),
        ("tokenizer.json", {"added_tokens": [{"id": 1, "content": 1}]}, "1 must be a text or an o"),
    ],
)
def test_files_that_no_tokenizer_has_are_refused(bare, name, content, message):
    write(bare, name, content)
    if message is None:
        assert len(XGLMTokenizer.from_pretrained(bare)) == SIZE + 1
        return
    with pytest.raises(ValueError, match=message):
        XGLMTokenizer.from_pretrained(bare)


def test_tables_that_contradict_one_another_are_refused(bare):
    write(bare, "added_tokens.json", {"<x>": SIZE})
    write(bare, "tokenizer.json", {"added_tokens": [{"id": SIZE + 1, "content": "<x>"}]})
    with pytest.raises(ValueError, match="'<x>' must be one text with one id, 2009"):
        XGLMTokenizer.from_pretrained(bare)


@pytest.mark.parametrize(
    ("name", "limit"),
    [("tokenizer_config.json", MAX_CONFIG_BYTES), ("sentencepiece.bpe.model", MAX_MODEL_BYTES)],
)
def test_large_files_are_refused(folder, name, limit):
    with (folder / name).open("r+b") as file:
        file.truncate(limit + 1)
    with pytest.raises(ValueError, match=f"{name} must not be larger than {limit} bytes"):
        XGLMTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("role", [role for role in ROLES if role != "mask_token"])
@pytest.mark.parametrize("kind", [XGLMTokenizer, XGLMTokenizerFast])
def test_roles_without_a_token_stay_without_one(kind, role, folder, tmp_path):
    assigned = kind.from_pretrained(folder)
    setattr(assigned, role, None)
    given = kind.from_pretrained(folder, **{role: None})
    for name, tokenizer in (("assigned", assigned), ("given", given)):
        tokenizer.save_pretrained(tmp_path / name)
        config = json.loads((tmp_path / name / "tokenizer_config.json").read_text())
        assert config[role] is None
        again = kind.from_pretrained(tmp_path / name)
        assert getattr(again, role) is None is getattr(again, f"{role}_id")
        assert again.fingerprint() == tokenizer.fingerprint()
        assert again.fingerprint() != kind.from_pretrained(folder).fingerprint()


def test_flags_are_written_where_there_are_any(folder, tmp_path):
    tokenizer = XGLMTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"mask_token": AddedToken("<mask>", lstrip=True, special=True)})
    tokenizer.save_pretrained(tmp_path / "saved")
    special = json.loads((tmp_path / "saved" / "special_tokens_map.json").read_text())
    assert special["pad_token"] == "<pad>"
    assert special["mask_token"] == {
        **{"content": "<mask>", "lstrip": True, "normalized": False},
        **{"rstrip": False, "single_word": False},
    }
    added = json.loads((tmp_path / "saved" / "added_tokens.json").read_text())
    assert added == {"<mask>": SIZE}
    (tmp_path / "saved" / "tokenizer_config.json").unlink()
    again = XGLMTokenizer.from_pretrained(tmp_path / "saved")
    assert again.fingerprint() == tokenizer.fingerprint()
