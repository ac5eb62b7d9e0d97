"""Uploading a folder, and reading it back from where it went."""

import pytest

from xformer.hub import HubOptions, open_source, push_folder

NAME = "org/new"
FILES = {"config.json": b"{}", "model.safetensors": bytes(range(256)), "sub/vocab.txt": b"a"}


@pytest.fixture
def folder(tmp_path):
    for name, content in FILES.items():
        path = tmp_path / "model" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "model"


def test_folder_becomes_a_commit_of_a_new_repository(hub, folder):
    address = push_folder(folder, NAME, commit_message="Add it", token="hf_member")
    commit = hub.repositories[NAME].refs["main"]
    assert address == f"{hub.url}/{NAME}/commit/{commit}"
    assert hub.commits == [(NAME, "main", "Add it")]
    assert hub.repositories[NAME].access == "public"
    source = open_source(NAME)
    assert source.require("model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert source.names() == (".gitattributes", *sorted(FILES))


def test_private_repository_is_made_so_and_kept(hub, folder):
    push_folder(folder, NAME, private=True, token="hf_member")
    assert hub.repositories[NAME].access == "private"
    (folder / "config.json").write_text("[]")
    push_folder(str(folder), NAME, token="hf_member")
    source = open_source(NAME, HubOptions(token="hf_member"))
    assert source.require("config.json").read_text() == "[]"


def test_pull_request_leaves_the_branch_alone(hub, folder):
    hub.commit(NAME, {"config.json": "old"})
    address = push_folder(folder, NAME, create_pr=True, token="hf_member")
    assert address == f"{hub.url}/{NAME}/discussions/1"
    assert hub.repositories[NAME].files("main") == {"config.json": b"old"}
    proposed = open_source(NAME, HubOptions(revision="refs/pr/1"))
    assert proposed.require("config.json").read_bytes() == b"{}"


def test_branch_is_the_one_named(hub, folder):
    hub.commit(NAME, {"config.json": "old"})
    hub.commit(NAME, {"config.json": "old"}, "trial")
    push_folder(folder, NAME, revision="trial", token="hf_member")
    assert hub.commits == [(NAME, "trial", "Upload model")]
    with pytest.raises(FileNotFoundError, match="org/new at v9: no such branch, tag or commit"):
        push_folder(folder, NAME, revision="v9", token="hf_member")


def test_refusals_name_the_key_to_change(hub, folder):
    for token in (None, "hf_other"):
        with pytest.raises(PermissionError, match="org/new at main: access denied; set token"):
            push_folder(folder, NAME, token=token)
    with pytest.raises(ValueError, match="a b"):
        push_folder(folder, "a b", token="hf_member")
    with pytest.raises(FileNotFoundError, match="there is no folder .*nothing"):
        push_folder(folder / "nothing", NAME, token="hf_member")
    assert hub.commits == []
    hub.status = 500
    with pytest.raises(ConnectionError, match="org/new at main: the hub could not be reached"):
        push_folder(folder, NAME, token="hf_member")
