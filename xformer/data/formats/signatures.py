"""The first bytes of files that are no text, whatever their names say.

Read as text, a table or an archive would be one bad row among many, and be lost without a word.
"""

import gzip
import io
from pathlib import Path

_UNPACK = "unpack it and name the files in it"
_UTF8 = "write it again as UTF-8"
_REPACK = "compress it with gzip or zstd"
_REWRITE = "write it again as Parquet"

# No text begins so: what is ASCII goes on with bytes that are no characters.
_SIGNATURES = {
    b"PAR1\x15": ("a Parquet file", "its name must end in .parquet"),
    b"ARROW1\0\0": ("an Arrow (Feather) file", _REWRITE),
    b"\xff\xff\xff\xff": ("an Arrow stream", "its name must end in .arrow"),
    b"\x83\xaf\x70\xd1\x0d\x88\x4a\x3f": (
        "an ArrayRecord file",
        "its name must end in .arrayrecord",
    ),
    b"\x1f\x8b": ("gzip", "its name must end in .gz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "its name must end in .zst"),
    b"BZh91AY&SY": ("bzip2", _REPACK),
    b"\xfd7zXZ\0": ("xz", _REPACK),
    b"\x04\x22\x4d\x18": ("lz4", _REPACK),
    b"PK\x03\x04": ("a zip archive", _UNPACK),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", _UNPACK),
    b"SQLite format 3\0": ("an SQLite database", "write its texts as JSON lines"),
    b"Obj\x01": ("an Avro file", _REWRITE),
    b"\x89HDF\r\n\x1a\n": ("an HDF5 file", _REWRITE),
    b"\x93NUMPY": ("a NumPy array", "files hold text, not numbers"),
    b"\xff\xfe": ("UTF-16", _UTF8),
    b"\xfe\xff": ("UTF-16", _UTF8),
}
_TAR = (b"ustar\0", b"ustar  \0")
_TAR_AT = 257


def refuse_binary(stream: io.BufferedReader | gzip.GzipFile, path: Path, compression: str) -> None:
    """Refuses a text file whose first bytes are those of something else.

    Args:
        stream: the file, decompressed, at its begin; nothing is taken out of it.
        path: the file, for the message.
        compression: the suffix that was seen through, or nothing.

    Raises:
        ValueError: it is no text.
    """
    head = stream.peek(_TAR_AT + len(_TAR[-1]))
    for signature, (kind, remedy) in _SIGNATURES.items():
        if head.startswith(signature):
            _refuse(path, compression, kind, remedy)
    if head.startswith(_TAR, _TAR_AT):
        _refuse(path, compression, "a tar archive", _UNPACK)


def _refuse(path: Path, compression: str, kind: str, remedy: str) -> None:
    inside = f" inside of {compression}; decompress it first, then" if compression else ":"
    raise ValueError(
        f"{path} must hold text, as its name says, but begins as {kind}{inside} {remedy}"
    )
