"""Writing configurations as gin text: the bindings in effect, and a whole built configuration."""

import pprint
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

from xformer.bindings import Reference, init_fields, owner_key, walk_values


def render(values: Mapping[str, Any]) -> str:
    """Writes bindings as gin text, one block for each configurable.

    Args:
        values: Literal values with references, by key.

    Returns:
        Text that gin reads back as the same bindings.
    """
    blocks: dict[str, list[str]] = {}
    for key in values:
        blocks.setdefault(key.rsplit(".", 1)[0], []).append(key)
    lines: list[str] = []
    for keys in blocks.values():
        if lines:
            lines.append("")
        for key in keys:
            line = f"{key} = {values[key]!r}"
            if len(line) > 100:
                folded = pprint.pformat(values[key], width=96, sort_dicts=False)
                line = f"{key} = \\\n" + "\n".join("    " + part for part in folded.split("\n"))
            lines.append(line)
    return "\n".join([*lines, ""])


def complete_values(config: Any, names: Mapping[type, str], root: str) -> dict[str, Any]:
    """Spells out every field of a built configuration, defaults too.

    Args:
        config: Instance of a config dataclass.
        names: Configurable name of every config dataclass.
        root: Configurable name of `config` itself.

    Returns:
        Literal values with references, by key: they build an equal instance whatever the defaults
        become. A class that is built more than once has the path of its fields as scope.

    Raises:
        TypeError: if a field holds a dataclass that has no name in `names`.
    """
    counts: dict[type, int] = {}
    _count(config, names, counts)
    values: dict[str, Any] = {}
    _complete(config, owner_key("", root), (), names, counts, values)
    return values


def _count(config: Any, names: Mapping[type, str], counts: dict[type, int]) -> None:
    counts[type(config)] = counts.get(type(config), 0) + 1
    for name in init_fields(type(config)):
        for part in walk_values(getattr(config, name)):
            if type(part) in names:
                _count(part, names, counts)


def _complete(
    config: Any,
    owner: str,
    path: tuple[str, ...],
    names: Mapping[type, str],
    counts: Mapping[type, int],
    values: dict[str, Any],
) -> None:
    children: list[tuple[Any, str, tuple[str, ...]]] = []

    def spelled(value: Any, place: tuple[str, ...]) -> Any:
        if type(value) in names:
            scope = "/".join(place) if counts[type(value)] > 1 else ""
            reference = Reference(names[type(value)], scope)
            children.append((value, owner_key(scope, reference.name), place))
            return reference
        if isinstance(value, dict):
            pairs = enumerate(value.items())
            return {key: spelled(one, (*place, f"item{at}")) for at, (key, one) in pairs}
        if isinstance(value, list | tuple):
            return type(value)(spelled(one, (*place, f"item{at}")) for at, one in enumerate(value))
        if is_dataclass(value):
            raise TypeError(f"{owner}: {type(value).__name__} is no configurable")
        return value

    for name in init_fields(type(config)):
        values[f"{owner}.{name}"] = spelled(getattr(config, name), (*path, name))
    for child, child_owner, place in children:
        _complete(child, child_owner, place, names, counts, values)
