import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from xformer.data.manifest import check_files, find_damage, read_manifest


@pytest.fixture
def folder(tmp_path, prepared_folder):
    return Path(shutil.copytree(prepared_folder, tmp_path / "corpus"))


def test_manifest_round_trips(folder):
    manifest = read_manifest(folder)
    (folder / "manifest.json").write_text(manifest.to_json())
    assert read_manifest(folder) == manifest


def test_identity_follows_content_and_not_place(folder):
    manifest = read_manifest(folder)
    moved = tuple(dataclasses.replace(one, path="elsewhere") for one in manifest.sources)
    assert dataclasses.replace(manifest, sources=moved).identity() == manifest.identity()
    other = tuple(dataclasses.replace(one, sha256="0" * 64) for one in manifest.sources)
    assert dataclasses.replace(manifest, sources=other).identity() != manifest.identity()


def test_whole_corpus_has_no_damage(folder):
    assert list(find_damage(folder, read_manifest(folder), hashes=True)) == []


@pytest.mark.parametrize("name", ["rows-00001.arrayrecord", "unigram_counts.npy"])
def test_missing_cut_and_changed_files_are_named(folder, name):
    manifest = read_manifest(folder)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    check_files(folder, manifest)
    with pytest.raises(ValueError, match=f"{name} must have the SHA-256"):
        check_files(folder, manifest, hashes=True)
    (folder / name).write_bytes(content[:-1])
    with pytest.raises(ValueError, match=f"{name} must have {len(content)} bytes, got"):
        check_files(folder, manifest)
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is missing .*PreparedData.path"):
        check_files(folder, manifest)


def test_names_that_leave_the_folder_are_refused(folder):
    fields = json.loads((folder / "manifest.json").read_text())
    fields["shards"][0]["path"] = "../../etc/passwd"
    (folder / "manifest.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=r"'\.\./\.\./etc/passwd' must be a plain file name"):
        check_files(folder, read_manifest(folder))


def test_folder_without_manifest_is_no_corpus(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`xformer prepare` wrote.*PreparedData\.path"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"format": "xformer-packed-rows", "format_version": 2}', '{"format": "x"}'],
)
def test_malformed_manifests_are_refused(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=r"manifest\.json must be a manifest that this version"):
        read_manifest(tmp_path)


def test_unknown_and_missing_fields_are_refused(folder):
    fields = json.loads((folder / "manifest.json").read_text())
    for changed in (fields | {"extra": 1}, {k: v for k, v in fields.items() if k != "counts"}):
        (folder / "manifest.json").write_text(json.dumps(changed))
        with pytest.raises(ValueError, match="must be a manifest"):
            read_manifest(folder)
