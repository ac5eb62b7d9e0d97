"""A tokenizer and small corpora for the tests of the data layer."""

import json
import os
import pydoc_data.topics
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from xformer.data.prepare import PrepareOptions, prepare

ROOT = Path(__file__).parents[2]
FIXTURES = Path(__file__).parents[1] / "tokenization" / "fixtures"
TEXTS = [text[:1500] for _, text in sorted(pydoc_data.topics.topics.items())]


def _write_rows(path, texts, key="text"):
    path.write_text("".join(json.dumps({key: text}) + "\n" for text in texts), encoding="utf-8")
    return str(path)


def _start(path, *arguments):
    """Starts a program in a session of its own, so that all it starts can be found."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, str(path), *arguments],
        start_new_session=True,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _members(session):
    """Finds the living processes of a session."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(folder.name))
    return sorted(found)


def _wait_for(condition, timeout_s=60.0):
    """Waits until a condition holds, and says whether it did."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if result := condition():
            return result
        time.sleep(0.02)
    return condition()


@pytest.fixture(scope="session")
def texts():
    return TEXTS


@pytest.fixture(scope="session")
def write_rows():
    return _write_rows


@pytest.fixture(scope="session")
def programs():
    """Starts programs that tests kill, and sees what is left of them."""
    return types.SimpleNamespace(start=_start, members=_members, wait_for=_wait_for)


@pytest.fixture(scope="session")
def tokenizer_folder():
    return str(FIXTURES / "xglm")


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory):
    return _write_rows(tmp_path_factory.mktemp("corpus") / "rows.jsonl", TEXTS)


@pytest.fixture(scope="session")
def prepared_folder(tmp_path_factory, corpus_file, tokenizer_folder):
    """Several shards, one of them with a padded row."""
    folder = tmp_path_factory.mktemp("prepared") / "corpus"
    options = PrepareOptions(length=64, shard_bytes=20_000)
    prepare([corpus_file], tokenizer_folder, folder, options=options, workers=1)
    return str(folder)
