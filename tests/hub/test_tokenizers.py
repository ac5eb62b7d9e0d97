"""Tokenizers from the hub and to it."""

from pathlib import Path

import pytest

from xformer.tokenization.xglm import XGLMTokenizer

NAME = "org/tokenizer"
FOLDER = Path(__file__).parents[1] / "tokenization" / "fixtures" / "xglm_bpe"


def test_tokenizer_is_read_from_its_commit(hub):
    files = {path.name: path.read_bytes() for path in FOLDER.iterdir()}
    hub.commit(NAME, files)
    hub.commit(NAME, {f"sub/{name}": content for name, content in files.items()}, "branch")
    hub.commit(NAME, {"tokenizer_config.json": "{}"}, "bare")
    local = XGLMTokenizer.from_pretrained(FOLDER)
    tokenizer = XGLMTokenizer.from_pretrained(NAME)
    assert tokenizer.fingerprint() == local.fingerprint()
    assert tokenizer.name_or_path == NAME
    again = XGLMTokenizer.from_pretrained(NAME, revision="branch", subfolder="sub", eos_token="<s>")
    assert again.eos_token_id == 0
    with pytest.raises(FileNotFoundError, match=r"has no sentencepiece\.bpe\.model"):
        XGLMTokenizer.from_pretrained(NAME, revision="bare")


def test_tokenizer_is_uploaded_as_it_is_saved(hub):
    tokenizer = XGLMTokenizer.from_pretrained(FOLDER)
    tokenizer.add_tokens("<x>")
    address = tokenizer.push_to_hub(NAME, token="hf_member", commit_message="Add a token")
    commit = hub.repositories[NAME].refs["main"]
    assert address == f"{hub.url}/{NAME}/commit/{commit}"
    assert hub.commits == [(NAME, "main", "Add a token")]
    assert XGLMTokenizer.from_pretrained(NAME).fingerprint() == tokenizer.fingerprint()
