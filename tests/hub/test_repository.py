"""Repositories of the hub: which commit is read, what is fetched again, what an error says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from xformer.hub import HubOptions, open_source

NAME = "org/tiny"
CONFIG, WEIGHTS = '{"model_type": "xglm"}', bytes(range(256)) * 40


@pytest.fixture
def repository(hub):
    """A repository with one commit."""
    hub.commit(NAME, {"config.json": CONFIG, "model.safetensors": WEIGHTS})
    return hub


def read(source, name="config.json"):
    return source.require(name).read_bytes()


def test_files_are_downloaded_when_first_asked_for(repository):
    source = open_source(NAME)
    assert repository.requests == []
    assert read(source) == CONFIG.encode()
    assert read(source, "model.safetensors") == WEIGHTS
    assert len(repository.asked("GET", "config.json")) == 1
    assert len(repository.asked("GET", "model.safetensors")) == 1
    read(source)
    assert len(repository.asked()) == 4


def test_cache_serves_what_it_has(repository):
    read(open_source(NAME), "model.safetensors")
    again = open_source(NAME)
    assert read(again, "model.safetensors") == WEIGHTS
    assert len(repository.asked("GET")) == 1
    assert len(repository.asked("HEAD")) == 2


def test_cache_can_be_put_elsewhere(repository, tmp_path):
    for place in (tmp_path / "a", str(tmp_path / "b")):
        path = open_source(NAME, HubOptions(cache_dir=place)).require("config.json")
        assert path.is_relative_to(place)


def test_force_download_fetches_again_but_once_a_source(repository):
    read(open_source(NAME))
    source = open_source(NAME, HubOptions(force_download=True))
    read(source), read(source)
    assert len(repository.asked("GET", "config.json")) == 2


def test_revision_may_be_a_branch_a_tag_or_a_commit(repository):
    first = repository.commit(NAME, {"config.json": "first"}, "v1")
    repository.commit(NAME, {"config.json": "branch"}, "refs/pr/1")
    for revision, text in ((first, "first"), ("v1", "first"), ("refs/pr/1", "branch")):
        assert read(open_source(NAME, HubOptions(revision=revision))) == text.encode()
    assert read(open_source(NAME)) == CONFIG.encode()


def test_a_commit_in_the_cache_needs_no_hub(repository):
    commit = repository.repositories[NAME].refs["main"]
    read(open_source(NAME))
    asked = len(repository.requests)
    assert read(open_source(NAME, HubOptions(revision=commit))) == CONFIG.encode()
    assert len(repository.requests) == asked


def test_branch_that_moves_between_two_files_is_read_at_one_commit(repository):
    old = repository.repositories[NAME].refs["main"]
    source = open_source(NAME)
    assert source.name == "org/tiny at main"
    read(source)
    assert source.name == f"org/tiny at {old}"
    repository.commit(NAME, {"config.json": "moved", "model.safetensors": b"moved"})
    assert read(source, "model.safetensors") == WEIGHTS
    assert read(open_source(NAME), "model.safetensors") == b"moved"


def test_file_that_is_missing_settles_the_commit_too(repository):
    source = open_source(NAME)
    assert source.file("tokenizer.json") is None
    repository.commit(NAME, {"config.json": "moved"})
    assert read(source) == CONFIG.encode()


def test_missing_file_is_named_with_the_commit(repository):
    commit = repository.repositories[NAME].refs["main"]
    with pytest.raises(FileNotFoundError, match=f"^org/tiny at {commit} has no vocab.txt$"):
        open_source(NAME).require("vocab.txt")


def test_subfolder_is_where_the_files_are(repository):
    repository.commit(NAME, {"config.json": "top", "sub/config.json": "inside", "sub/a.py": ""})
    source = open_source(NAME, HubOptions(subfolder="sub"))
    assert read(source) == b"inside"
    assert source.names() == ("a.py", "config.json")
    assert source.name.startswith("org/tiny/sub at ")
    assert open_source(NAME).names() == ("config.json", "sub/a.py", "sub/config.json")


def test_listing_is_of_the_commit_that_the_files_come_from(repository):
    source = open_source(NAME)
    read(source)
    repository.commit(NAME, {"moved.json": ""})
    assert source.names() == ("config.json", "model.safetensors")
    fresh = open_source(NAME)
    assert fresh.names() == ("moved.json",)
    repository.commit(NAME, {"again.json": ""})
    assert fresh.require("moved.json")


def test_offline_the_cache_is_the_source(repository):
    read(open_source(NAME))
    source = open_source(NAME, HubOptions(local_files_only=True))
    asked = len(repository.requests)
    assert read(source) == CONFIG.encode()
    assert source.file("model.safetensors") is None
    assert source.names() is None
    with pytest.raises(FileNotFoundError, match="has no model.safetensors in the cache, and down"):
        source.require("model.safetensors")
    other = open_source("org/other", HubOptions(local_files_only=True))
    with pytest.raises(FileNotFoundError, match="unset local_files_only and HF_HUB_OFFLINE, or"):
        other.require("config.json")
    assert len(repository.requests) == asked


def test_hub_that_cannot_be_reached_leaves_what_the_cache_knows(repository):
    source = open_source(NAME)
    read(source)
    assert source.file("vocab.txt") is None
    repository.status = 503
    source = open_source(NAME)
    assert read(source) == CONFIG.encode()
    assert source.file("vocab.txt") is None, "the hub has said that there is none"
    assert source.names() is None
    with pytest.raises(ConnectionError, match="could not be reached and the cache does not have"):
        source.file("model.safetensors")


def test_closed_port_is_a_connection_error(repository, monkeypatch):
    repository.shutdown()
    repository.server_close()
    for force in (False, True):
        source = open_source(NAME, HubOptions(force_download=force))
        with pytest.raises(ConnectionError, match="org/tiny at main: the hub could not be reached"):
            source.file("config.json")


def test_interrupted_download_is_resumed_by_the_next(repository, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 400)
    repository.cut["model.safetensors"] = 1000
    with pytest.raises(ConnectionError, match="try again"):
        open_source(NAME).file("model.safetensors")
    assert repository.ranges == []
    assert read(open_source(NAME), "model.safetensors") == WEIGHTS
    assert repository.ranges == ["bytes=800-"]


def test_download_that_ends_early_is_no_file(repository):
    """Even where the server claims that it was whole."""
    repository.claims = 100
    with pytest.raises(ConnectionError, match="try again"):
        open_source(NAME).file("model.safetensors")
    repository.claims = None
    assert read(open_source(NAME), "model.safetensors") == WEIGHTS


@pytest.mark.parametrize(
    "name, options, error, message",
    [
        ("org/none", {}, FileNotFoundError, "no such repository, or a private one; check the name"),
        ("org/none", {"token": "hf_member"}, FileNotFoundError, "no such repository"),
        ("org/closed", {}, FileNotFoundError, "or set token to one with access"),
        ("org/gated", {}, PermissionError, "org/gated at main is gated: accept its terms"),
        ("org/gated", {"token": "hf_other"}, PermissionError, "is gated: accept its terms"),
        (NAME, {"token": "hf_other"}, PermissionError, "access denied; set token to a valid one"),
        (NAME, {"revision": "v9"}, FileNotFoundError, "tiny at v9: no such branch, tag or commit"),
        (NAME, {"token": True}, PermissionError, "access denied; set token"),
    ],
)
def test_refusal_of_the_hub_names_the_key_to_change(repository, name, options, error, message):
    repository.commit("org/closed", {"config.json": CONFIG}, access="private")
    repository.commit("org/gated", {"config.json": CONFIG}, access="gated")
    with pytest.raises(error, match=message) as caught:
        open_source(name, HubOptions(**options)).file("config.json")
    assert "hf_" not in str(caught.value)


@pytest.mark.parametrize("name", ["org/closed", "org/gated"])
def test_token_opens_what_is_closed(repository, name):
    access = {"org/closed": "private", "org/gated": "gated"}[name]
    files = {"config.json": CONFIG, "model.safetensors": WEIGHTS}
    repository.commit(name, files, access=access)
    source = open_source(name, HubOptions(token="hf_member"))
    assert read(source, "model.safetensors") == WEIGHTS  # its storage gets no token
    assert source.names() == ("config.json", "model.safetensors")


def test_error_of_the_disk_stays_one(repository, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        open_source(NAME, HubOptions(cache_dir=tmp_path / "file")).file("config.json")


def test_token_is_not_shown():
    assert "hf_member" not in repr(HubOptions(token="hf_member"))


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "modeling_x.py", "weights.pt", "a.pkl", "chat_template.jinja"]
)
def test_what_could_be_code_is_never_downloaded(repository, name):
    repository.commit(NAME, {name: b"code"})
    with pytest.raises(ValueError, match=f"org/tiny at main: {name} is not read; files must end"):
        open_source(NAME).file(name)
    assert repository.requests == []


SCRIPT = """
import sys
from xformer.hub import HubOptions, open_source
source = open_source("org/tiny", HubOptions(cache_dir=sys.argv[1]))
print(source.file("config.json"), source.names(), source.file("vocab.txt"), sep="|")
"""


REQUIRE = """
from xformer.hub import open_source
try:
    open_source("org/tiny").require("vocab.txt")
except FileNotFoundError as error:
    print(error)
"""


def test_environment_names_the_hub_and_turns_it_off(repository, tmp_path):
    """As in a user's process: the client reads its environment when it is imported."""

    def run(script=SCRIPT, **environment):
        command = [sys.executable, "-c", script, str(tmp_path / "cache")]
        environment = os.environ | {"HF_ENDPOINT": repository.url} | environment
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.strip().split("|")

    assert run(HF_HUB_OFFLINE="1") == ["None", "None", "None"]
    assert "downloads are off: unset local_files_only" in run(REQUIRE, HF_HUB_OFFLINE="1")[0]
    assert repository.requests == []
    path, names, absent = run()
    assert Path(path).read_text() == CONFIG
    assert (names, absent) == ("('config.json', 'model.safetensors')", "None")
    asked = len(repository.requests)
    assert run(HF_HUB_OFFLINE="1") == [path, "None", "None"]
    assert len(repository.requests) == asked
