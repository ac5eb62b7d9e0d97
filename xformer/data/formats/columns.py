"""What Parquet files and Arrow streams share: the column that holds the text, and pyarrow."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def import_pyarrow(path: Path) -> Any:
    """Imports pyarrow, which is an extra.

    Args:
        path: the file to be read with it, for the message.

    Returns:
        The module, its parts `ipc` and `parquet` included.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    try:
        import pyarrow.parquet  # brings `ipc` with it
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"reading {path} needs pyarrow; install it with `pip install 'xformer-jax[arrow]'`"
        ) from error
    return pyarrow


@contextlib.contextmanager
def named_damage(pyarrow: Any, path: Path, kind: str) -> Iterator[None]:
    """Makes what pyarrow says about a damaged file an error that names the file.

    Args:
        pyarrow: the module.
        path: the file.
        kind: what it must be.

    Yields:
        Nothing.

    Raises:
        OSError: the operating system failed.
        ValueError: the file is damaged.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            raise
        raise ValueError(f"{path} must be a whole {kind}: {error}") from error
    except (pyarrow.ArrowException, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be a whole {kind}: {error}") from error


def find_column(pyarrow: Any, schema: Any, path: Path, name: str) -> int:
    """Finds the column that holds the text.

    Args:
        pyarrow: the module.
        schema: the table's schema.
        path: the file, for the message.
        name: the column's name.

    Returns:
        Its number.

    Raises:
        ValueError: there is no such column, or it holds no strings, bytes or nulls.
    """
    if schema.names.count(name) != 1:
        shown = ", ".join(map(repr, schema.names[:20])) or "none"
        raise ValueError(
            f"{path} must have one column {name!r}; set text_key to one of its columns: {shown}"
        )
    index = schema.get_field_index(name)
    found = schema.field(index).type
    held = found.value_type if pyarrow.types.is_dictionary(found) else found
    if held not in _bytes_types(pyarrow) and held != pyarrow.null():
        raise ValueError(
            f"column {name!r} of {path} must hold strings, got {found}; set text_key to a column "
            "that does"
        )
    return index


def as_bytes(pyarrow: Any, column: Any) -> Any:
    """Looks at a column of text as bytes, so that one row that is not UTF-8 spoils no other.

    Args:
        pyarrow: the module.
        column: an array of a type that `find_column` accepts.

    Returns:
        An array of type binary or large_binary, checked: no value lies outside of what was read.

    Raises:
        pyarrow.ArrowInvalid: one does.
    """
    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pyarrow.types.is_null(column.type):  # What pandas writes where every value is missing
        return column.cast(pyarrow.binary())
    column = column.view(_bytes_types(pyarrow)[column.type])
    column.validate(full=True)
    is_view = column.type == pyarrow.binary_view()
    return column.cast(pyarrow.large_binary()) if is_view else column


def _bytes_types(pyarrow: Any) -> dict[Any, Any]:
    """Maps the types that a text may have to types of bytes, of the same layout in memory."""
    binary, large, view = pyarrow.binary(), pyarrow.large_binary(), pyarrow.binary_view()
    return {
        **{kind: kind for kind in (binary, large, view)},
        pyarrow.string(): binary,
        pyarrow.large_string(): large,
        pyarrow.string_view(): view,
    }
