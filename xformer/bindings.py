"""Static checks of configuration bindings: names, macros, scopes, types, use.

`xformer.configurables` parses gin files into the bindings of this module, has them resolved here
and hands the result back to gin. Nothing is constructed here and nothing of gin is imported.
"""

import difflib
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

from xformer.field_types import conform


@dataclass(frozen=True)
class Reference:
    """`@scope/Name()` in a gin file: an instance of the configurable `Name`.

    Attributes:
        name: Configurable name.
        scope: Scope in which it is built, or "" for the scope of whoever refers to it.
        is_called: False for `@Name` without parentheses.
    """

    name: str
    scope: str = ""
    is_called: bool = True

    def __repr__(self) -> str:
        """Writes the reference as gin does."""
        return f"@{owner_key(self.scope, self.name)}" + "()" * self.is_called


@dataclass(frozen=True)
class Macro:
    """`%name` in a gin file: the value bound to `name`."""

    name: str

    def __repr__(self) -> str:
        """Writes the use of the macro as gin does."""
        return f"%{self.name}"


@dataclass(frozen=True)
class Binding:
    """One line `scope/Name.field = value`, or `macro = value` where `name` is "".

    Attributes:
        scope: Scope of the key, or "".
        name: Configurable name, or "" for a macro.
        field: Field of the configurable, or the macro's name.
        value: Literal value; `Reference` and `Macro` may stand anywhere inside.
        place: Where it was written, for messages: "file:line" or the command-line flag.
    """

    scope: str
    name: str
    field: str
    value: Any
    place: str

    @property
    def key(self) -> str:
        """What stands left of the equals sign."""
        return f"{owner_key(self.scope, self.name)}.{self.field}" if self.name else self.field


Classes = Callable[[str], type]
"""Gives the dataclass of a configurable name."""


@dataclass
class Resolved:
    """What a configuration comes to, seen from its root.

    Attributes:
        values: Final value of every binding that something takes, by key, in the order of use.
        owners: Every (scope, name) that is built, in the order of use.
        macros: Macros that the values use.
        problems: One message for everything that is wrong.
    """

    values: dict[str, Any] = field(default_factory=dict)
    owners: list[tuple[str, str]] = field(default_factory=list)
    macros: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)


def owner_key(scope: str, name: str) -> str:
    """Joins a scope, which may be "", and a name."""
    return f"{scope}/{name}" if scope else name


def suggestion(word: str, candidates: Sequence[str]) -> str:
    """Returns "; did you mean 'x'?" for the candidate nearest to `word`, or ""."""
    near = difflib.get_close_matches(word, candidates, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def init_fields(cls: type) -> dict[str, Field]:
    """Returns the fields of a dataclass that gin may bind, by name."""
    return {
        one.name: one for one in fields(cls) if one.init and one.metadata.get("configurable", True)
    }


def walk_values(value: Any) -> Iterator[Any]:
    """Yields a value and everything inside its containers, depth first."""
    yield value
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list | tuple):
        for item in value:
            yield from walk_values(item)


def name_problems(bindings: Sequence[Binding], names: Sequence[str], classes: Classes) -> list[str]:
    """Finds names that do not exist.

    Args:
        bindings: Bindings to check.
        names: Every configurable name.
        classes: Gives the dataclass of one of `names`.

    Returns:
        One message for each unknown configurable, field or reference, with a suggestion.
    """
    problems = []
    for binding in bindings:
        if binding.name and binding.name not in names:
            near = suggestion(binding.name, names)
            problems.append(
                f"{binding.place}: {binding.key}: no configurable is called {binding.name!r}{near}"
            )
        elif binding.name and binding.field not in (
            known := list(init_fields(classes(binding.name)))
        ):
            near = suggestion(binding.field, known)
            problems.append(
                f"{binding.place}: {binding.key}: {binding.name} has no field "
                f"{binding.field!r}{near}"
            )
        problems += [
            f"{binding.place}: {binding.key} = {binding.value!r}: {fault}"
            for value in walk_values(binding.value)
            if isinstance(value, Reference) and (fault := _reference_fault(value, names))
        ]
    return problems


def _reference_fault(reference: Reference, names: Sequence[str]) -> str:
    if reference.name not in names:
        near = suggestion(reference.name, names)
        return f"no configurable is called {reference.name!r}{near}"
    return "" if reference.is_called else f"write {reference!r}() with parentheses"


def resolve(root: str, bindings: Mapping[str, Binding], classes: Classes) -> Resolved:
    """Follows the references from the root and gives every binding in use its final value.

    Macros are replaced by their values; scopes inherit as in gin: a field takes the binding of the
    longest prefix of its scope, and a reference without a scope is built in the current one.

    Args:
        root: Configurable name that is built first.
        bindings: Bindings by key, of known names and fields only.
        classes: Gives the dataclass of a configurable name.

    Returns:
        Values, what is built, and problems: undefined macros, circles, wrong types, missing fields.
    """
    found = Resolved()
    _visit("", root, (), bindings, classes, found)
    return found


def _visit(
    scope: str,
    name: str,
    path: tuple[tuple[str, str], ...],
    bindings: Mapping[str, Binding],
    classes: Classes,
    found: Resolved,
) -> None:
    owner = (scope, name)
    if owner in path:
        circle = " -> ".join(f"@{owner_key(*one)}()" for one in [*path[path.index(owner) :], owner])
        found.problems.append(f"the references form a circle: {circle}")
        return
    if owner in found.owners:
        return
    found.owners.append(owner)
    hints = typing.get_type_hints(classes(name))

    def probe(value: Any) -> Any:  # of the right class, never initialised
        return object.__new__(classes(value.name)) if isinstance(value, Reference) else value

    for one in init_fields(classes(name)).values():
        binding = _binding_for(scope, name, one.name, bindings)
        if binding is None:
            if one.default is MISSING and one.default_factory is MISSING:
                key = f"{owner_key(scope, name)}.{one.name}"
                found.problems.append(f"{key} must be bound: it has no default")
            continue
        try:
            value = _without_macros(binding.value, bindings, found.macros, ())
            value = found.values[binding.key] = conform(value, hints[one.name], probe)
        except (TypeError, NameError) as error:
            found.problems.append(f"{binding.place}: {binding.key} {error}")
            found.values[binding.key] = binding.value
            continue
        for part in walk_values(value):
            if isinstance(part, Reference):
                at = part.scope or scope
                _visit(at, part.name, (*path, owner), bindings, classes, found)


def _binding_for(
    scope: str, name: str, field_name: str, bindings: Mapping[str, Binding]
) -> Binding | None:
    parts = scope.split("/") if scope else []
    for length in range(len(parts), -1, -1):
        key = f"{owner_key('/'.join(parts[:length]), name)}.{field_name}"
        if key in bindings:
            return bindings[key]
    return None


def _without_macros(
    value: Any, bindings: Mapping[str, Binding], used: set[str], path: tuple[str, ...]
) -> Any:
    def inner(part: Any) -> Any:
        return _without_macros(part, bindings, used, path)

    if isinstance(value, Macro):
        if value.name in path:
            raise NameError(f"uses the macro {value!r}, which is defined by itself")
        if value.name not in bindings or bindings[value.name].name:
            macros = [one.key for one in bindings.values() if not one.name]
            raise NameError(f"uses {value!r}, which is not defined{suggestion(value.name, macros)}")
        used.add(value.name)
        return _without_macros(bindings[value.name].value, bindings, used, (*path, value.name))
    if isinstance(value, dict):
        return {inner(key): inner(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(inner, value))
    return value


def unused_problems(
    bindings: Mapping[str, Binding], found: Resolved, classes: Classes
) -> list[str]:
    """Says why bindings and macros were not taken by anything, with the nearest valid key.

    Args:
        bindings: Bindings to report on, by key; those in use are passed over.
        found: What `resolve` made of the whole configuration.
        classes: Gives the dataclass of a configurable name.

    Returns:
        One message for each unused binding.
    """
    keys = [
        f"{owner_key(*owner)}.{name}"
        for owner in found.owners
        for name in init_fields(classes(owner[1]))
    ]
    return [
        f"{one.place}: {one.key} is bound but nothing uses it: {_why_unused(one, found, keys)}"
        for one in bindings.values()
        if one.key not in (found.values if one.name else found.macros)
    ]


def _why_unused(binding: Binding, found: Resolved, keys: Sequence[str]) -> str:
    if not binding.name:
        same_field = [key for key in keys if key.rsplit(".", 1)[1] == binding.field]
        near = f"; did you mean {same_field[0]!r}?" if same_field else ""
        return f"no %{binding.field} is in use" + (
            near or suggestion(binding.field, sorted(found.macros))
        )
    scopes = [scope for scope, name in found.owners if name == binding.name]
    if any(f"{scope}/".startswith(f"{binding.scope}/") or not binding.scope for scope in scopes):
        return f"every @{binding.name}() takes it from a binding with a longer scope"
    others = [key for key in keys if key != binding.key]
    return f"no @{owner_key(binding.scope, binding.name)}() is in use" + suggestion(
        binding.key, others
    )
