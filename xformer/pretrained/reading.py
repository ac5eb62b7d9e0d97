"""Opening the weights of a model folder, without reading them yet.

Weights are safetensors, or the msgpack files of former Flax users, in one file or in several with
an index. Opening them reads headers only: what is stored under which name, in which shape and
dtype. Files are not trusted: headers and indices have limits, an index names nothing outside its
folder, and formats that can run code are refused.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from xformer.files import read_object
from xformer.hub import Source
from xformer.pretrained.manifest import read_manifest, verify
from xformer.pretrained.msgpack_reading import MsgpackFile
from xformer.pretrained.names import Index, Shape

SAFETENSORS = "model.safetensors"
MSGPACK = "flax_model.msgpack"
MAX_HEADER_BYTES = 8 * 2**20  # about 100 bytes a tensor
MAX_SHARDS = 2000
_UNSAFE = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".h5", ".ckpt", ".bin.index.json")
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
    """

    def __init__(self, path: Path) -> None:
        """Reads a file's header.

        Args:
            path: The file.

        Raises:
            ValueError: if it is not a whole safetensors file with a header of reasonable size.
        """
        self.path = path
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
        if size > MAX_HEADER_BYTES:
            raise ValueError(
                f"{path} must have a header of at most {MAX_HEADER_BYTES} bytes, got {size}; "
                "it is not a whole safetensors file, or not one of a model"
            )
        with self._open() as file:
            is_flax = (file.metadata() or {}).get("format") == "flax"
            slices = {name: file.get_slice(name) for name in file.keys()}
            self.forms = {
                name: Form(tuple(one.get_shape()), self._dtype(name, one.get_dtype()))
                for name, one in slices.items()
            }
        self.layout: Literal["published", "flax"] = "flax" if is_flax else "published"

    def read(self, name: str, index: Index | None = None) -> np.ndarray:
        """Reads a tensor, or a part of it without the rest.

        Args:
            name: Its name.
            index: The part; None means everything.

        Returns:
            A new array.
        """
        # Opened anew each time, as the pages that were read stay in memory until it is closed.
        with self._open() as file:
            if index is None or 0 in self.forms[name].shape:
                return file.get_tensor(name)[index or ...]
            return file.get_slice(name)[index]

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
                f"{self.path}: {name} has dtype {dtype}; known are {', '.join(_DTYPES)}"
            )
        return _DTYPES[dtype]


File = SafetensorsFile | MsgpackFile
_Opener = Callable[[Path], File]
_KINDS: dict[str, _Opener] = {SAFETENSORS: SafetensorsFile, MSGPACK: MsgpackFile}


class Weights:
    """Stored weights, opened for reading.

    Attributes:
        source: What messages call the place they come from.
        layout: "published" for PyTorch's names and layouts; "flax" where the names are the paths of
            a Flax tree joined by "/", and the arrays are as in that tree.
        names: Shape and dtype of every tensor, by name.
    """

    def __init__(self, source: str, files: Mapping[str, File]) -> None:
        """Collects opened files.

        Args:
            source: What messages call the place they come from.
            files: The file that holds each tensor, by its stored name.

        Raises:
            ValueError: if the files are of several layouts.
        """
        layouts = {file.layout for file in files.values()}
        if len(layouts) > 1:
            raise ValueError(f"{source}: shards must be all of PyTorch's layout or all of Flax's")
        is_published = layouts == {"published"}
        self.source = source
        self.layout: Literal["published", "flax"] = "published" if is_published else "flax"
        # Flax's safetensors join paths by dots, its msgpack files nest them.
        shown = {name: name if is_published else name.replace(".", "/") for name in files}
        self._files = {shown[name]: (file, name) for name, file in files.items()}
        self.names = {
            shown[name]: Form(file.forms[name].shape, file.forms[name].dtype)
            for name, file in files.items()
        }

    def origin(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self._files[name][0].path

    def read(self, name: str, index: Index | None = None) -> np.ndarray:
        """Reads a tensor, or a part of it without the rest.

        Args:
            name: One of `names`.
            index: The part, one slice per dimension without steps; None means everything.

        Returns:
            A new array in the stored dtype.
        """
        file, stored = self._files[name]
        return file.read(stored, index)


def open_weights(source: Source) -> Weights:
    """Opens the weights of a model folder; safetensors are preferred to msgpack.

    Args:
        source: Where the files are, as `xformer.hub.open_source` gives them.

    Returns:
        The weights, of which only the headers have been read.

    Raises:
        FileNotFoundError: if there are no weights.
        ValueError: if a file is damaged, if an index and its shards disagree, or if there are
            only weights in a format that can run code.
    """
    for name, open_file in _KINDS.items():
        if (path := source.file(name)) is not None:
            file = open_file(verify(path, name, read_manifest(source)))
            return Weights(source.name, dict.fromkeys(file.forms, file))
        if (path := source.file(f"{name}.index.json")) is not None:
            return Weights(source.name, _open_shards(source, path, open_file))
    unsafe = [name for name in source.names() or () if name.endswith(_UNSAFE)]
    if unsafe:
        raise ValueError(
            f"{source.name} has weights only in {', '.join(sorted(unsafe))}: formats that can run "
            "code are not read. Convert them where you trust them, with transformers and PyTorch: "
            "AutoModelForCausalLM.from_pretrained(NAME).save_pretrained(FOLDER)"
        )
    raise FileNotFoundError(
        f"{source.name} has no weights: neither {SAFETENSORS} nor {MSGPACK}, "
        "nor the index of either (NAME.index.json)"
    )


def _open_shards(source: Source, index: Path, open_file: _Opener) -> dict[str, File]:
    """The opened shard of every tensor that an index names."""
    manifest = read_manifest(source)
    places = _read_index(verify(index, index.name, manifest))
    shards = {}
    for shard in set(places.values()):
        if (path := source.file(shard)) is None:
            raise FileNotFoundError(f"{source.name} lacks {shard}, which {index.name} names")
        shards[shard] = open_file(verify(path, shard, manifest))
    for name, shard in places.items():
        if name not in shards[shard].forms:
            raise ValueError(f"{index} says that {name} is in {shard}, which does not hold it")
    return {name: shards[shard] for name, shard in places.items()}


def _read_index(path: Path) -> dict[str, str]:
    """The shard of every tensor, as an index tells it."""
    places = read_object(path, MAX_HEADER_BYTES).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{path} must have a weight_map from tensors to shards")
    for shard in places.values():
        plain = isinstance(shard, str) and shard not in ("", ".", "..")
        if not plain or Path(shard).name != shard or "\\" in shard or "\0" in shard:
            raise ValueError(f"{path}: shard names must be plain file names, got {shard!r:.80}")
    if len(set(places.values())) > MAX_SHARDS:
        raise ValueError(f"{path} must name at most {MAX_SHARDS} shards")
    return places
