"""Strict checks of literal values against type annotations."""

import itertools
import math
import re
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

from beartype.door import is_bearable

Probe = Callable[[Any], Any]


def conform(value: Any, hint: Any, probe: Probe = lambda value: value) -> Any:
    """Checks a value against an annotation, strictly.

    An int is taken for a float and a list for a tuple, and converted. A bool is no int.

    Args:
        value: Literal value.
        hint: Annotation.
        probe: Gives what to look at in place of a value that stands for something else; others it
            returns as they are.

    Returns:
        The value, converted.

    Raises:
        TypeError: if it does not fit: "must be <annotation>, got <type> <value>".
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _conform_union(value, hint, arguments, probe)
    if origin is tuple and isinstance(value, list | tuple):
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            arguments = tuple(itertools.repeat(arguments[0], len(value)))
        if len(arguments) == len(value):
            pairs = zip(value, arguments, strict=True)
            return tuple(conform(item, one, probe) for item, one in pairs)
    elif origin is list and isinstance(value, list):
        return [conform(item, arguments[0], probe) for item in value]
    elif origin is dict and isinstance(value, dict):
        key_hint, item_hint = arguments
        return {
            conform(key, key_hint, probe): conform(item, item_hint, probe)
            for key, item in value.items()
        }
    elif hint is float and type(value) is int and abs(value) < 2**1000:
        return float(value)
    elif _fits(value, hint, probe):
        return value
    raise TypeError(f"must be {_hint_name(hint)}, got {_got(value, probe)}{_advice(value, hint)}")


def _conform_union(value: Any, hint: Any, members: Sequence[Any], probe: Probe) -> Any:
    results = []
    for member in members:
        try:
            results.append(conform(value, member, probe))
        except TypeError:
            continue
    if not results:
        advice = next((text for one in members if (text := _advice(value, one))), "")
        raise TypeError(f"must be {_hint_name(hint)}, got {_got(value, probe)}{advice}")
    # `int | float` keeps an int: a member that takes the value as it is goes before a conversion.
    return next((one for one in results if type(one) is type(value)), results[0])


def _fits(value: Any, hint: Any, probe: Probe) -> bool:
    if (real := probe(value)) is not value:
        return is_bearable(real, hint)
    if isinstance(value, float) and not math.isfinite(value):
        return False
    if isinstance(value, bool) and hint is int:
        return False
    return is_bearable(value, hint)


def _advice(value: Any, hint: Any) -> str:
    if hint is int and isinstance(value, float) and value.is_integer():
        return f"; write {int(value)}"
    if typing.get_origin(hint) is tuple and isinstance(value, str):
        return f"; write ({value!r},)"
    if hint is str and isinstance(value, int | float):
        return f"; write {str(value)!r} with the quotes"
    return ""


def _got(value: Any, probe: Probe) -> str:
    if value is None or probe(value) is not value:
        return repr(value)
    return f"{type(value).__name__} {value!r}"


def _hint_name(hint: Any) -> str:
    text = hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
    return re.sub(r"\b(?:\w+\.)+(?=\w)", "", text)
