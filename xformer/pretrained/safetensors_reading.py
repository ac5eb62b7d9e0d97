"""Reading safetensors: the header alone, then whole tensors or parts of them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from xformer.pretrained.names import Index, Shape

MAX_HEADER_BYTES = 2 * 2**20  # 1024 layers of 16 tensors, at 100 bytes each, and a fifth more
_DTYPES = {
    "F64": np.dtype("f8"),
    "F32": np.dtype("f4"),
    "F16": np.dtype("f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("i8"),
    "I32": np.dtype("i4"),
    "I16": np.dtype("i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}


_CODES = {dtype: code for code, dtype in _DTYPES.items()}


def dtype_code(dtype: np.dtype) -> str:
    """What safetensors call a dtype.

    Args:
        dtype: The dtype.

    Returns:
        Its code, such as "F32".

    Raises:
        ValueError: if they have none for it.
    """
    if dtype not in _CODES:
        raise ValueError(f"weights must have a dtype of {[d.name for d in _CODES]}, got {dtype}")
    return _CODES[dtype]


class Form(NamedTuple):
    """What a header says about a tensor.

    Attributes:
        shape: Its sizes.
        dtype: Its dtype.
    """

    shape: Shape
    dtype: np.dtype


class SafetensorsFile:
    """A safetensors file, opened for reading.

    Attributes:
        path: The file.
        forms: What it holds, by name.
        layout: "flax" where the metadata says that Flax's names and layouts were stored.
        cost: Bytes of its header.
    """

    limit: ClassVar[int] = MAX_HEADER_BYTES

    def __init__(self, path: Path, limit: int = MAX_HEADER_BYTES) -> None:
        """Reads a file's header.

        Args:
            path: The file.
            limit: Largest header accepted, in bytes.

        Raises:
            ValueError: if it is not a whole safetensors file with a header of reasonable size.
        """
        self.path = path
        with path.open("rb") as file:
            self.cost = int.from_bytes(file.read(8), "little")
        if self.cost > limit:
            raise ValueError(
                f"{path} must have a header of at most {limit} bytes (all shards of a model "
                f"together {MAX_HEADER_BYTES}), got {self.cost}; it is not a whole safetensors "
                "file, or not one of a model"
            )
        self._file = opened = self._open()
        is_flax = (opened.metadata() or {}).get("format") == "flax"
        slices = {name: opened.get_slice(name) for name in opened.keys()}
        self.forms = {
            name: Form(tuple(one.get_shape()), self._dtype(name, one.get_dtype()))
            for name, one in slices.items()
        }
        self.layout: Literal["published", "flax"] = "flax" if is_flax else "published"

    def keep(self, names: Iterable[str]) -> None:
        """Forgets everything in the file but some names."""
        self.forms = {name: self.forms[name] for name in names}

    def read(self, name: str, index: Index | None = None) -> np.ndarray:
        """Reads a tensor, or a part of it without the rest.

        Args:
            name: Its name.
            index: The part; None means everything.

        Returns:
            A new array.
        """
        if self._file is None:
            self._file = self._open()
        if index is None or 0 in self.forms[name].shape:
            return self._file.get_tensor(name)[index or ...]
        return self._file.get_slice(name)[index]

    def close(self) -> None:
        """Gives back the memory of the pages that were read; reading opens the file again."""
        self._file = None

    def _open(self) -> Any:
        try:
            return safe_open(self.path, framework="numpy")
        except SafetensorError as error:
            raise ValueError(
                f"{self.path} is not a whole safetensors file: {str(error):.500}"
            ) from error

    def _dtype(self, name: str, dtype: str) -> np.dtype:
        if dtype not in _DTYPES:
            raise ValueError(
                f"{self.path}: {name:.80} has dtype {dtype}; known are {', '.join(_DTYPES)}"
            )
        return _DTYPES[dtype]
