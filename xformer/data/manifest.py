"""The manifest of a prepared corpus: what is in the folder, and from what it was made.

The folder of a corpus:

    manifest.json            this, written last
    rows-00000.arrayrecord   packed rows, see `packing`; and so on
    unigram_counts.npy       int64 [vocab_size], how often each id is the target of a prediction
    tokenizer/               the tokenizer that the ids belong to
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from xformer.buckets import Folder, file_sizes

FORMAT = "xformer-packed-rows"
FORMAT_VERSION = 1
FILE_NAME = "manifest.json"
UNIGRAM_FILE = "unigram_counts.npy"
TOKENIZER_FOLDER = "tokenizer"


@dataclass(frozen=True)
class FileEntry:
    """A file and its identity.

    Attributes:
        path: of a part of the corpus, its name in the folder; of a source, the name it was given.
        bytes: its size.
        sha256: of its content, hexadecimal.
        rows: packed rows in it (0 for what is not a shard).
    """

    path: str
    bytes: int
    sha256: str
    rows: int = 0


@dataclass(frozen=True)
class Settings:
    """What, beside sources and tokenizer, decides the rows.

    Attributes:
        length: tokens of a row.
        text_key: key, column or feature of the text.
        text_split: what of a text file is a document.
        max_document_bytes: longest document used.
        shard_bytes: bytes of source text in one shard.
    """

    length: int
    text_key: str
    text_split: str
    max_document_bytes: int
    shard_bytes: int


@dataclass(frozen=True)
class TokenizerEntry:
    """The tokenizer the ids belong to.

    Attributes:
        class_name: its class.
        sha256: its `fingerprint()`.
        vocab_size: number of ids.
        pad_token_id: the id of padding.
    """

    class_name: str
    sha256: str
    vocab_size: int
    pad_token_id: int


@dataclass(frozen=True)
class Counts:
    """Sizes of the corpus.

    Attributes:
        documents: documents packed.
        characters: characters in them.
        tokens: tokens in all rows, begin and end of documents included, padding not.
        rows: packed rows.
        bad_rows: source rows that were skipped.
    """

    documents: int
    characters: int
    tokens: int
    rows: int
    bad_rows: int


@dataclass(frozen=True)
class Manifest:
    """All of `manifest.json`.

    Attributes:
        settings: see `Settings`.
        tokenizer: see `TokenizerEntry`.
        token_dtype: numpy name of the stored ids, "<u2" or "<u4".
        counts: see `Counts`.
        sources: the files of documents, in the order in which they were read.
        shards: the row files, in order.
        unigram_counts: the file of target counts.
    """

    settings: Settings
    tokenizer: TokenizerEntry
    token_dtype: str
    counts: Counts
    sources: tuple[FileEntry, ...]
    shards: tuple[FileEntry, ...]
    unigram_counts: FileEntry

    def identity(self) -> dict[str, Any]:
        """Says what the rows are made from.

        Returns:
            Settings, tokenizer and content of the sources; not where the sources lie.
        """
        return describe_inputs(self.settings, self.tokenizer, self.sources)

    def content_sha256(self) -> str:
        """Identity of the rows: SHA-256 over the hashes of the shards.

        Returns:
            64 hexadecimal digits.
        """
        described = [[shard.path, shard.bytes, shard.sha256, shard.rows] for shard in self.shards]
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()

    def to_json(self) -> str:
        """Writes the manifest.

        Returns:
            The text of `manifest.json`.
        """
        head = {"format": FORMAT, "format_version": FORMAT_VERSION}
        # In ASCII, as the name of a source need not be UTF-8.
        return json.dumps(head | asdict(self), indent=1) + "\n"


def describe_inputs(
    settings: Settings, tokenizer: TokenizerEntry, sources: tuple[FileEntry, ...]
) -> dict[str, Any]:
    """Describes what decides the rows of a corpus.

    Args:
        settings: the settings.
        tokenizer: the tokenizer.
        sources: the files of documents, in order.

    Returns:
        A flat JSON object; equal objects mean equal rows.
    """
    return {
        "format_version": FORMAT_VERSION,
        **asdict(settings),
        "tokenizer": tokenizer.sha256,
        "sources": [source.sha256 for source in sources],
    }


def read_manifest(folder: Folder) -> Manifest:
    """Reads the manifest of a prepared corpus.

    Args:
        folder: the corpus.

    Returns:
        The manifest.

    Raises:
        FileNotFoundError: the folder holds no prepared corpus.
        ValueError: the manifest is damaged or of another version.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} must be a corpus that `xformer prepare` wrote, but has no {FILE_NAME}; "
            "set PreparedData.path or Mixture.sources to such folders"
        )
    try:
        fields = json.loads(path.read_bytes())
        found = (fields.pop("format"), fields.pop("format_version"))
        if found != (FORMAT, FORMAT_VERSION):
            raise ValueError(f"format must be {FORMAT} version {FORMAT_VERSION}, got {found}")
        return Manifest(
            settings=Settings(**fields.pop("settings")),
            tokenizer=TokenizerEntry(**fields.pop("tokenizer")),
            counts=Counts(**fields.pop("counts")),
            sources=tuple(FileEntry(**entry) for entry in fields.pop("sources")),
            shards=tuple(FileEntry(**entry) for entry in fields.pop("shards")),
            unigram_counts=FileEntry(**fields.pop("unigram_counts")),
            **fields,
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path} must be a manifest that this version wrote: {error}; prepare the corpus again"
        ) from error


def find_damage(folder: Folder, manifest: Manifest, *, hashes: bool = False) -> Iterator[str]:
    """Compares the files of a corpus with its manifest.

    Args:
        folder: the corpus.
        manifest: its manifest.
        hashes: whether contents are read and hashed; otherwise only sizes are compared.

    Yields:
        A sentence about each file that is not what the manifest says.
    """
    sizes = file_sizes(folder)
    for entry in (*manifest.shards, manifest.unigram_counts):
        path = folder / entry.path
        if Path(entry.path).name != entry.path:
            yield f"{entry.path!r} must be a plain file name"
        elif entry.path not in sizes:
            yield f"{path} is missing"
        elif sizes[entry.path] != entry.bytes:
            yield f"{path} must have {entry.bytes} bytes, got {sizes[entry.path]}"
        elif hashes and hash_file(path) != entry.sha256:
            yield f"{path} must have the SHA-256 {entry.sha256}, got {hash_file(path)}"


def check_files(folder: Folder, manifest: Manifest, *, hashes: bool = False) -> None:
    """Refuses a corpus with files that are not what its manifest says.

    Args:
        folder: the corpus.
        manifest: its manifest.
        hashes: whether contents are compared, and not only sizes.

    Raises:
        ValueError: a file is missing, cut off or changed; the message names it.
    """
    damage = list(find_damage(folder, manifest, hashes=hashes))
    if damage:
        shown = "; ".join(damage[:5])
        raise ValueError(
            f"{shown} ({len(damage)} damaged); restore or prepare the corpus again, or set "
            "PreparedData.path or Mixture.sources to others"
        )


def hash_file(path: Folder) -> str:
    """Hashes a file.

    Args:
        path: the file.

    Returns:
        Its SHA-256, hexadecimal.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
