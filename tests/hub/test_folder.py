"""Local folders as sources: which names are taken for one, and which files lead out of it."""

import os
from pathlib import Path

import pytest

from xformer.hub import HubOptions, open_source


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "sub" / "vocab.txt").write_text("a")
    return folder


def test_files_of_a_folder_are_found(folder):
    source = open_source(folder)
    assert source.name == str(folder)
    assert source.require("config.json").read_text() == "{}"
    assert source.file("vocab.txt") is None
    assert source.names() == ("config.json",)
    with pytest.raises(FileNotFoundError, match="model has no vocab.txt$"):
        source.require("vocab.txt")


def test_subfolder_is_inside_the_folder(folder):
    source = open_source(folder, HubOptions(subfolder="sub"))
    assert source.names() == ("vocab.txt",)
    assert source.require("vocab.txt").read_text() == "a"
    with pytest.raises(FileNotFoundError, match="model has no subfolder 'other'"):
        open_source(folder, HubOptions(subfolder="other"))


def test_folder_wins_over_a_name_of_the_hub(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    (folder.parent / "org").mkdir()
    folder.rename("org/tiny")
    assert open_source("org/tiny").require("config.json") == Path("org/tiny/config.json").resolve()


def test_home_folder_is_understood(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert open_source("~/model").require("config.json").read_text() == "{}"


@pytest.mark.parametrize("name", ["./x", "../x", "/x", "~/x", "a/b/c", "a\\b", Path("org/tiny")])
def test_what_can_only_be_a_path_is_not_looked_up(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        open_source(name)


@pytest.mark.parametrize("name", ["", "a b", "a--b", "org/tiny.git", "x/", "org/-tiny", "x" * 97])
def test_name_that_is_no_repository_is_refused(name):
    with pytest.raises(ValueError, match="is neither a folder that exists nor a legal name"):
        open_source(name)


def test_file_is_no_source(folder):
    with pytest.raises(ValueError, match="config.json must be a folder; give the one that"):
        open_source(folder / "config.json")


@pytest.mark.parametrize(
    "name",
    ["../config.json", "/etc/a.json", "a\\b.json", "", ".", "..", "sub/../config.json", "a\0.json"],
)
def test_names_that_lead_elsewhere_are_refused(folder, name):
    with pytest.raises(ValueError, match="file name must be a plain relative name, got"):
        open_source(folder).file(name)
    if name:
        with pytest.raises(ValueError, match="subfolder must be a plain relative name, got"):
            HubOptions(subfolder=name)


@pytest.mark.parametrize("revision", ["", "../x", "a/../b", "/x"])
def test_revision_that_git_refuses_is_refused(revision):
    with pytest.raises(ValueError, match="revision must be a branch, a tag or a commit, got"):
        HubOptions(revision=revision)


def test_options_that_contradict_are_refused():
    with pytest.raises(ValueError, match="force_download and local_files_only exclude one another"):
        HubOptions(force_download=True, local_files_only=True)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "modeling_x.py", "weights.h5", "config"])
def test_what_could_be_code_is_not_opened(folder, name):
    (folder / name).write_text("code")
    with pytest.raises(ValueError, match=f"{name} is not read; files must end in one of"):
        open_source(folder).file(name)


def test_link_inside_the_folder_is_followed(folder):
    (folder / "vocab.txt").symlink_to("sub/vocab.txt")
    assert open_source(folder).require("vocab.txt").read_text() == "a"
    (folder.parent / "alias").symlink_to(folder)
    assert open_source(folder.parent / "alias").require("config.json").read_text() == "{}"


def test_link_out_of_the_folder_is_refused(folder, tmp_path):
    (tmp_path / "secret.json").write_text("{}")
    (folder / "a.json").symlink_to(tmp_path / "secret.json")
    (folder / "b.json").symlink_to("../secret.json")
    (folder / "out").symlink_to(tmp_path)
    for name in ("a.json", "b.json", "out/secret.json"):
        with pytest.raises(ValueError, match="is a link that leads out of its folder, to .*secret"):
            open_source(folder).file(name)
    with pytest.raises(ValueError, match="is a link that leads out of its folder"):
        open_source(folder, HubOptions(subfolder="out")).file("secret.json")


def test_link_to_nothing_is_refused(folder):
    (folder / "a.json").symlink_to("nothing.json")
    (folder / "b.json").symlink_to("c.json")
    (folder / "c.json").symlink_to("b.json")
    for name in ("a.json", "b.json"):
        with pytest.raises(ValueError, match="is a link that leads nowhere"):
            open_source(folder).file(name)


def test_what_is_no_regular_file_is_refused(folder):
    (folder / "a.json").mkdir()
    os.mkfifo(folder / "b.json")  # opening it would wait for ever
    for name in ("a.json", "b.json"):
        with pytest.raises(ValueError, match=f"{name} must be a regular file"):
            open_source(folder).file(name)


def test_snapshot_in_the_cache_may_be_opened_as_a_folder(tmp_path):
    repository = tmp_path / "models--org--tiny"
    snapshot = repository / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "aa").write_text("{}")
    (repository / "aa").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/aa")
    (snapshot / "other.json").symlink_to("../../aa")
    assert open_source(snapshot).require("config.json").read_text() == "{}"
    with pytest.raises(ValueError, match="leads out of its folder"):
        open_source(snapshot).file("other.json")
