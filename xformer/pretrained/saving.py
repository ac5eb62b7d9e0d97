"""Writing parameters as a folder that `transformers` loads.

Tensors are gathered, converted and written piece by piece, so that saving needs little memory
beside the parameters, wherever they are. The same parameters always give the same bytes.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import jax
import numpy as np
from flax import traverse_util
from jax.typing import DTypeLike

from xformer.layers.stack import STACKED
from xformer.models.config import CONFIG_FILE
from xformer.pretrained.manifest import MANIFEST, describe
from xformer.pretrained.msgpack_writing import Entry, write_tree
from xformer.pretrained.names import SAME, Layout, Shape, Weight, WeightTable
from xformer.pretrained.reading import MSGPACK, PIECE_BYTES, SAFETENSORS
from xformer.pretrained.safetensors_reading import dtype_code
from xformer.pretrained.staging import staged

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


@dataclass(frozen=True)
class _Target:
    """A tensor to write: an array, or one layer of an array that holds all layers."""

    name: str
    leaf: Any
    layer: int | None
    layout: Layout
    dtype: np.dtype
    advance: Callable[[int], None]  # told the size of every piece

    @property
    def shape(self) -> Shape:
        """Its shape in the file."""
        shape = self.leaf.shape if self.layer is None else self.leaf.shape[1:]
        return self.layout.shape(tuple(shape))

    @property
    def size(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def pieces(self) -> Iterator[np.ndarray]:
        """Its content in order, as contiguous arrays of the file's dtype."""
        for piece in self._pieces():
            yield piece
            self.advance(piece.nbytes)

    def _pieces(self) -> Iterator[np.ndarray]:
        value = self.leaf if self.layer is None else _cut(self.leaf, 0, self.layer, 1)[0]
        if self.layout.reshape is not None or not value.shape:
            whole = np.asarray(value).astype(self.dtype)
            yield self.layout.to_published(whole)
            return
        axis = self.layout.axes[0] if self.layout.axes else 0
        rows = self.shape[0]
        step = max(1, PIECE_BYTES // max(1, self.size // max(1, rows)))
        for start in range(0, rows, step):
            part = np.asarray(_cut(value, axis, start, min(step, rows - start)))
            yield np.ascontiguousarray(self.layout.permute(part).astype(self.dtype))


def save_params(
    folder: Path,
    params: Mapping[str, Any],
    table: WeightTable,
    *,
    max_shard_size: str | int = "5GB",
    layout: Literal["published", "flax"] = "published",
    dtype: DTypeLike | None = None,
    files: Mapping[str, bytes] | None = None,
    with_manifest: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[str, ...]:
    """Writes a model folder, whole or not at all.

    A folder that exists keeps its other files; its weights in any format are replaced. If that is
    interrupted, it holds the old model, the new one, or none that can be loaded.

    Args:
        folder: The folder; it is made where there is none.
        params: The "params" collection: nested dicts of arrays, with looped or scanned stacks.
        table: The family's names.
        max_shard_size: Bytes of weights in one file, as a number or like "5GB" or "500MiB"; more
            make several files and an index. A larger tensor has a file of its own.
        layout: "published" for safetensors as PyTorch's classes name them; "flax" for the msgpack
            files of `transformers`' Flax classes.
        dtype: Dtype of the stored tensors; None keeps that of the parameters.
        files: Other files by name, such as config.json; they are put in place last.
        with_manifest: Whether to add a manifest of checksums, which loading then verifies.
        progress: Called now and then with the bytes written and those to be written.

    Returns:
        The names of the files written.

    Raises:
        ValueError: if an argument is out of range, or an array is not on this host.
        OSError: if the folder cannot be written.
    """
    limit = parse_size(max_shard_size)
    done = 0

    def advance(size: int) -> None:
        nonlocal done
        done += size
        if progress is not None:
            progress(done, sum(tensor.size for tensor in tensors))

    tensors = _tensors(params, table, layout, dtype, advance)
    base = SAFETENSORS if layout == "published" else MSGPACK
    shards = _split(tensors, limit, base)
    write = _write_safetensors if layout == "published" else _write_msgpack
    others = dict(files or {})
    if len(shards) > 1:
        others = {f"{base}.index.json": _index(shards)} | others
    with staged(folder, _replace) as stage:
        for name, content in shards.items():
            with (stage / name).open("wb") as file:
                write(file, content)
        for name, data in others.items():
            (stage / name).write_bytes(data)
        if with_manifest:
            (stage / MANIFEST).write_bytes(describe(stage))
            others[MANIFEST] = b""
    return (*shards, *others)


def parse_size(size: str | int) -> int:
    """Reads a size like "5GB".

    Args:
        size: A number of bytes, or a number with KB, MB, GB, TB, KiB, MiB, GiB or TiB.

    Returns:
        The number of bytes.

    Raises:
        ValueError: if it is something else, or nothing.
    """
    if isinstance(size, int):
        number, unit = size, 1
    else:
        match = re.fullmatch(r"(\d+) ?([KMGT]I?B)", size.upper())
        number, unit = (int(match[1]), _UNITS[match[2]]) if match else (0, 1)
    if number < 1:
        raise ValueError(f'max_shard_size must be bytes or a size like "5GB", got {size!r}')
    return number * unit


def _tensors(
    params: Mapping[str, Any],
    table: WeightTable,
    layout: str,
    dtype: DTypeLike | None,
    advance: Callable[[int], None],
) -> list[_Target]:
    """What is to be written, in the natural order of the names."""
    found = []
    for path, leaf in traverse_util.flatten_dict(params).items():
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            raise ValueError(
                f"parameter {'/'.join(path)} must be on this host's devices to be saved; "
                "gather the parameters first, or export on one host"
            )
        stored = np.dtype(leaf.dtype if dtype is None else dtype)
        rank = leaf.ndim - (STACKED in path)
        at = path.index(STACKED) if STACKED in path else None
        for layer in range(leaf.shape[0]) if at is not None else [None]:
            full = path if at is None else (*path[:at], str(layer), *path[at + 1 :])
            flax = Weight("/".join(full), SAME)
            place = table.weight(full, rank) if layout == "published" else flax
            found.append(_Target(place.name, leaf, layer, place.layout, stored, advance))
    return sorted(found, key=lambda tensor: _natural(tensor.name))


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts layer 10 after layer 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"[./]", name)]


def _split(tensors: Iterable[_Target], limit: int, base: str) -> dict[str, list[_Target]]:
    """The tensors of each file."""
    groups: list[list[_Target]] = [[]]
    filled = 0
    for tensor in tensors:
        if groups[-1] and filled + tensor.size > limit:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.size
    if len(groups) == 1:
        return {base: groups[0]}
    stem, suffix = base.split(".")
    count = len(groups)
    return {f"{stem}-{i:05d}-of-{count:05d}.{suffix}": one for i, one in enumerate(groups, start=1)}


def _index(shards: Mapping[str, list[_Target]]) -> bytes:
    places = {tensor.name: shard for shard, tensors in shards.items() for tensor in tensors}
    total = sum(tensor.size for tensors in shards.values() for tensor in tensors)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    return (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()


def _write_safetensors(file: BinaryIO, tensors: Iterable[_Target]) -> None:
    """Writes the header and then the tensors, wide dtypes first so that all are aligned."""
    ordered = sorted(tensors, key=lambda tensor: -tensor.dtype.itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in ordered:
        start, end = end, end + tensor.size
        header[tensor.name] = {
            "dtype": dtype_code(tensor.dtype),
            "shape": tensor.shape,
            "data_offsets": (start, end),
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for tensor in ordered:
        for piece in tensor.pieces():
            file.write(piece.reshape(-1).view(np.uint8).data)


def _write_msgpack(file: BinaryIO, tensors: Iterable[_Target]) -> None:
    entries = (
        Entry(tuple(tensor.name.split("/")), tensor.shape, tensor.dtype, tensor.pieces)
        for tensor in tensors
    )
    write_tree(file, entries)


def _cut(value: Any, axis: int, start: int, size: int) -> Any:
    """A part of an array. Of a device's it is a copy: they keep what they once gave the host."""
    if isinstance(value, jax.Array):
        return jax.lax.dynamic_slice_in_dim(value, start, size, axis)
    return value[(slice(None),) * axis + (slice(start, start + size),)]


def _replace(stage: Path, folder: Path) -> None:
    """Moves files into an existing folder: weights, then what describes them.

    Nothing reads a mixture: between the first step and the last the folder lacks the config that
    comes with the new weights, and a set of shards lacks its index. The old model can be loaded
    until the first step, when the new one is on the disk as a whole.
    """
    new = [path.name for path in sorted(stage.iterdir())]
    old = [path.name for path in folder.iterdir() if _is_weights(path.name)]
    described = [CONFIG_FILE] if CONFIG_FILE in new else []
    for name in (*described, *filter(_is_index, old), MANIFEST):
        (folder / name).unlink(missing_ok=True)
    weights = [name for name in new if _is_weights(name)]
    for name in sorted(weights, key=_is_index):
        (stage / name).replace(folder / name)
    for name in set(old) - set(new):
        (folder / name).unlink(missing_ok=True)
    for name in sorted(set(new) - set(weights), key=lambda name: name == CONFIG_FILE):
        (stage / name).replace(folder / name)


def _is_index(name: str) -> bool:
    return name.endswith(".index.json")


def _is_weights(name: str) -> bool:
    """Whether a file is one that this module writes, or an index of such."""
    kinds = r"(model(-\d+-of-\d+)?\.safetensors|flax_model(-\d+-of-\d+)?\.msgpack)(\.index\.json)?"
    return re.fullmatch(kinds, name) is not None
