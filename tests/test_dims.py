"""The dimension key, and that sharding rules and einsums speak its language."""

import ast
import dataclasses
import re
from pathlib import Path

from xformer.dims import DIMENSIONS
from xformer.partitioning import Rules

ROOT = Path(__file__).resolve().parents[1]
PARAMETER_AXES = {d.parameter_axis for d in DIMENSIONS.values()} - {None}
ACTIVATION_AXES = {d.activation_axis for d in DIMENSIONS.values()} - {None}
SOURCES = [p for name in ("layers", "models") for p in (ROOT / "xformer" / name).glob("*.py")]


def calls(function):
    """The arguments of every call of a function in the layers and models."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(node, "func", None)
            if (
                isinstance(node, ast.Call)
                and getattr(name, "attr", getattr(name, "id", "")) == function
            ):
                yield node.args


def strings(node):
    return {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and n.value is not None}


def test_letters_are_single_and_axes_are_of_one_kind():
    assert all(re.fullmatch("[A-Z]", letter) for letter in DIMENSIONS)
    assert not PARAMETER_AXES & ACTIVATION_AXES
    assert all(axis.startswith("act_") for axis in ACTIVATION_AXES)


def test_rules_have_one_field_per_axis():
    assert {f.name for f in dataclasses.fields(Rules)} == PARAMETER_AXES | ACTIVATION_AXES


def test_layers_name_only_axes_of_the_key():
    constrained = [strings(args[1]) for args in calls("with_logical_constraint")]
    assert len(constrained) > 3 and set().union(*constrained) <= ACTIVATION_AXES
    named = [strings(args[1]) for args in calls("with_axes") if isinstance(args[1], ast.Tuple)]
    assert named and set().union(*named) <= PARAMETER_AXES


def test_einsums_use_letters_of_the_key():
    equations = [args[0].value for args in calls("einsum")]
    assert len(equations) >= 3
    assert set("".join(equations)) - set(",->") <= DIMENSIONS.keys()
