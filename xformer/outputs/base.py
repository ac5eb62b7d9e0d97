"""The behaviour that all output structs share."""

from collections import OrderedDict
from dataclasses import fields
from typing import Any, NoReturn, TypeAlias

import jax
import numpy as np

Array: TypeAlias = jax.Array
Arrays: TypeAlias = tuple[jax.Array, ...]
Cache: TypeAlias = Any  # a pytree of arrays, of the model's own form


class ModelOutput(OrderedDict[str, Any]):
    """The behaviour that all outputs share; subclasses are `flax.struct` dataclasses.

    As a tuple and as a dictionary an output has the fields that are not None, in their order:
    `out[0]`, `out[:2]` and `out.to_tuple()` give values, `out["logits"]`, `out.items()` and
    `"logits" in out` go by name, and iterating gives names. Which fields there are never changes;
    `out.replace(logits=x)` makes another output.

    Two outputs are equal when they are of one class and all their arrays have equal values.
    """

    def __post_init__(self) -> None:
        """Fills the dictionary face from the fields."""
        self._show_fields()

    def _show_fields(self) -> None:
        super().clear()
        for field in fields(self):  # type: ignore[arg-type]  # subclasses are dataclasses
            value = getattr(self, field.name)
            if value is not None:
                super().__setitem__(field.name, value)

    def to_tuple(self) -> tuple[Any, ...]:
        """Returns the values of the fields that are not None."""
        return tuple(self.values())

    def __getitem__(self, key: Any) -> Any:
        """Gives a field by name, or by position among the fields that are not None.

        Args:
            key: a field's name, a position or a slice of positions.

        Returns:
            The field's value; for a slice a tuple of values.

        Raises:
            KeyError: no field of that name is set.
            IndexError: fewer fields are set.
        """
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def __setitem__(self, name: str, value: Any) -> None:
        """Sets a field by name, for code written for mutable outputs; `replace` is the clean way.

        Args:
            name: a field of the struct.
            value: what it shall hold; None takes it out of the tuple and the dictionary.

        Raises:
            KeyError: the struct has no such field.
        """
        names = [field.name for field in fields(self)]  # type: ignore[arg-type]
        if name not in names:
            raise KeyError(f"{name!r} is no field of {type(self).__name__}: {', '.join(names)}")
        object.__setattr__(self, name, value)
        self._show_fields()

    def _refuse(self, *args: object, **kwargs: object) -> NoReturn:
        raise TypeError(
            f"the fields of {type(self).__name__} are fixed; use out.replace(field=value) for"
            " another output, or dict(out) for a dictionary of your own"
        )

    __delitem__ = pop = popitem = setdefault = update = clear = _refuse
    move_to_end = __or__ = __ror__ = __ior__ = _refuse

    def __eq__(self, other: object) -> bool:
        """Tells whether `other` is of the same class with the same structure and equal values."""
        if self is other:
            return True
        structure: Any = jax.tree.structure(self)
        return structure == jax.tree.structure(other) and all(
            map(np.array_equal, jax.tree.leaves(self), jax.tree.leaves(other))
        )

    def __ne__(self, other: object) -> bool:
        """Tells whether `other` differs; a dictionary's own would compare by items."""
        return not self == other

    __hash__ = None  # type: ignore[assignment]  # arrays have no hash

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles and copies by the fields."""
        values = (getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]
        return type(self), tuple(values)
