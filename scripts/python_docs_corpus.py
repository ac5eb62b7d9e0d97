#!/usr/bin/env python3
"""Write a small corpus from text that every Python installation has.

The documents are the language reference of `pydoc_data.topics` and, for each module of the standard
library, all its docstrings under headings of names and signatures. Sources are parsed, never
imported. About 5 % of the documents, chosen by a hash of their names, are for validation: no
document is in both files, and the choice is the same on every machine.

Example:
  python scripts/python_docs_corpus.py --out corpus

Writes corpus/train.jsonl and corpus/validation.jsonl, rows of {"id": ..., "text": ...}.
"""

import argparse
import ast
import hashlib
import json
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

from xformer.files import write_atomic

# Tests and what is not of the library; `site-packages` differs from machine to machine.
SKIPPED = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__"}
SKIPPED |= {"pydoc_data", "turtledemo", "lib-dynload"}
MIN_CHARACTERS = 200
DEFINITIONS = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def topic_documents() -> Iterator[tuple[str, str]]:
    """Reads the language reference.

    Yields:
        Name and text of each topic.
    """
    for name, text in sorted(topics.items()):
        yield f"topic:{name}", text.strip() + "\n"


def module_paths(library: Path) -> list[tuple[str, Path]]:
    """Finds the modules of the standard library.

    Args:
        library: its folder.

    Returns:
        Name and file of each, by name.
    """
    found = []
    for path in library.rglob("*.py"):
        parts = path.relative_to(library).with_suffix("").parts
        skipped = SKIPPED & set(parts) or parts[0].startswith(("config-", "_sysconfigdata"))
        if not skipped:
            found.append((".".join(parts).removesuffix(".__init__"), path))
    return sorted(found)


def module_document(name: str, path: Path) -> str:
    """Collects the docstrings of a module.

    Args:
        name: its dotted name.
        path: its source.

    Returns:
        The docstrings under headings; empty where there are none or the file does not parse.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Escapes that old sources have.
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return ""
    sections = list(docstring_sections(tree, name))
    return "\n\n".join(sections) + "\n" if sections else ""


def docstring_sections(node: ast.AST, name: str) -> Iterator[str]:
    """Walks a module, its classes and functions in the order of the source.

    Args:
        node: a module, class, function, or a statement in one.
        name: the qualified name of the innermost definition.

    Yields:
        Heading and docstring of each definition that has one.
    """
    if isinstance(node, ast.Module | DEFINITIONS):
        docstring = ast.get_docstring(node)
        if docstring and docstring.strip():
            yield f"{heading(node, name)}\n\n{docstring.strip()}"
    for child in ast.iter_child_nodes(node):
        if isinstance(child, DEFINITIONS):
            yield from docstring_sections(child, f"{name}.{child.name}")
        elif isinstance(child, ast.stmt | ast.excepthandler):  # Definitions under `if` and `try`.
            yield from docstring_sections(child, name)


def heading(node: ast.AST, name: str) -> str:
    """Writes the line above a docstring.

    Args:
        node: a module, class or function.
        name: its qualified name.

    Returns:
        Such as `def json.dumps(obj, *, indent=None)`.
    """
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(map(ast.unparse, node.bases))
        return f"class {name}({bases})" if bases else f"class {name}"
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        word = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        return f"{word} {name}({ast.unparse(node.args)}){returns}"
    return f"module {name}"


def is_validation(name: str, share: float) -> bool:
    """Chooses the documents for validation.

    Args:
        name: identity of a document.
        share: part of all documents, 0 to 1.

    Returns:
        Whether this one is chosen; the same on every machine.
    """
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return number < share * 2**64


def collect(library: Path) -> dict[str, str]:
    """Collects all documents, each text once.

    Args:
        library: folder of the standard library.

    Returns:
        Text by name.
    """
    documents = dict(topic_documents())
    paths = module_paths(library)
    for i, (name, path) in enumerate(paths):
        if sys.stderr.isatty():
            print(f"\r{i + 1}/{len(paths)} modules", end="", file=sys.stderr)
        documents[f"module:{name}"] = module_document(name, path)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    # Modules that are copies of another must not be in both parts.
    seen: dict[str, str] = {}
    for name, text in documents.items():
        if len(text) >= MIN_CHARACTERS:
            seen.setdefault(text.partition("\n")[2], name)
    return {name: documents[name] for name in seen.values()}


def write_jsonl(path: Path, documents: dict[str, str]) -> None:
    """Writes documents, so that the file appears whole or not at all.

    Args:
        path: the file.
        documents: text by name.
    """
    rows = (
        {"id": name, "text": text.encode(errors="replace").decode()}
        for name, text in documents.items()
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def main() -> int:
    """Writes the corpus.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where to write")
    parser.add_argument(
        "--validation-share", type=float, default=0.05, help="of all documents (%(default)s)"
    )
    parser.add_argument(
        "--library",
        type=Path,
        default=Path(sysconfig.get_path("stdlib")),
        help="folder of the standard library (this Python's)",
    )
    args = parser.parse_args()
    if not 0 < args.validation_share < 1:
        parser.error(f"--validation-share must be between 0 and 1, got {args.validation_share}")
    documents = collect(args.library)
    for part in ("train", "validation"):
        chosen = {
            name: text
            for name, text in documents.items()
            if is_validation(name, args.validation_share) == (part == "validation")
        }
        write_jsonl(args.out / f"{part}.jsonl", chosen)
        characters = sum(map(len, chosen.values()))
        print(f"{args.out / part}.jsonl: {len(chosen):,} documents, {characters:,} characters")
    return 0


if __name__ == "__main__":
    sys.exit(main())
