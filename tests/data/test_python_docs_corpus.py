import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "python_docs_corpus.py"

MODULE = '''"""A module of the library, with enough to say about itself to be a document."""
raise RuntimeError("sources are read, never imported")

class Shape(Base):
    """A shape."""

    async def area(self, scale: int = 2) -> float:
        """Its area."""

if True:
    def under_a_condition(*names):
        """Found as well."""

def silent():
    pass
'''


def _run(*arguments):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        check=True,
        capture_output=True,
        text=True,
    )


def _rows(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture
def library(tmp_path):
    folder = tmp_path / "library"
    for name in ("shapes/__init__.py", "test/test_a.py", "site-packages/other.py", "z.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(MODULE.replace("module", name))
    (folder / "copy.py").write_text(MODULE.replace("module", "z.py"))
    (folder / "broken.py").write_text("def (")
    return folder


def test_parts_share_no_document_and_are_the_same_again(tmp_path, library):
    for out in ("first", "second"):
        _run("--out", tmp_path / out, "--library", library, "--validation-share", "0.3")
    parts = {}
    for name in ("train.jsonl", "validation.jsonl"):
        parts[name] = _rows(tmp_path / "first" / name)
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    train, validation = parts.values()
    for key in ("id", "text"):
        assert not {row[key] for row in train} & {row[key] for row in validation}
    assert len(validation) / len(train + validation) == pytest.approx(0.3, abs=0.15)
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == list(parts)


def test_modules_become_headings_and_docstrings(tmp_path, library):
    _run("--out", tmp_path, "--library", library)
    rows = _rows(tmp_path / "train.jsonl") + _rows(tmp_path / "validation.jsonl")
    documents = {row["id"]: row["text"] for row in rows if row["id"].startswith("module:")}
    assert set(documents) == {"module:shapes", "module:copy", "module:z"}
    assert documents["module:shapes"] == (
        "module shapes\n\n"
        "A shapes/__init__.py of the library, with enough to say about itself to be a document."
        "\n\n"
        "class shapes.Shape(Base)\n\nA shape.\n\n"
        "async def shapes.Shape.area(self, scale: int=2) -> float\n\nIts area.\n\n"
        "def shapes.under_a_condition(*names)\n\nFound as well.\n"
    )


def test_help_shows_an_example():
    assert "python scripts/python_docs_corpus.py --out corpus" in _run("--help").stdout


def test_share_is_checked(tmp_path):
    with pytest.raises(subprocess.CalledProcessError) as error:
        _run("--out", tmp_path, "--validation-share", "1.5")
    assert "--validation-share must be between 0 and 1, got 1.5" in error.value.stderr
