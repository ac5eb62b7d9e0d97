"""Plans in a process of their own: what they are, and what becomes of one that crashes."""

import importlib
import importlib.util
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from xformer.configurables import load
from xformer.plan import apart
from xformer.plan.apart import measure_apart
from xformer.plan.topology import Topology

QUICKSTART = Path(__file__).parents[2] / "configs" / "runs" / "quickstart.gin"
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu: requirements/plan.txt"
)


class Crash(str):
    """A name that ends the process that reads it."""

    def __reduce__(self):
        return os.abort, ()


class Missing(str):
    """A name that is lost on the way."""

    def __reduce__(self):
        return importlib.import_module, ("xformer.missing",)


@needs_libtpu
def test_a_plan_made_apart_is_the_one_made_here(plan_of):
    bindings = ("Run.batch_size=2", "Run.execution=@Execution()", 'Execution.layers="scan"')
    run = load(QUICKSTART, list(bindings)).run
    apart = measure_apart(run, Topology.parse("v5e:1x1"), length=64, quick=True)
    assert apart == plan_of(QUICKSTART, "v5e:1x1", *bindings, length=64)


@needs_libtpu
def test_what_is_refused_apart_is_refused_here():
    run = load(QUICKSTART, ["MeshConfig.fsdp=3"]).run
    with pytest.raises(ValueError, match="must multiply to the 4 devices"):
        measure_apart(run, Topology.parse("v5e:2x2"), length=64, quick=True)


@needs_libtpu
def test_a_compiler_that_crashes_does_not_end_this_process():
    run = load(QUICKSTART).run
    with pytest.raises(ValueError, match="compiler for v5e crashed on this program .SIGABRT"):
        measure_apart(run, Topology.parse("v5e:2x2"), gpu_target=Crash())


@needs_libtpu
def test_a_process_that_cannot_begin_is_no_crash_of_the_compiler(capfd):
    run = load(QUICKSTART).run
    with pytest.raises(RuntimeError, match="ended with code 1 before it began"):
        measure_apart(run, Topology.parse("v5e:2x2"), gpu_target=Missing())
    assert "No module named 'xformer.missing'" in capfd.readouterr().err


@needs_libtpu
def test_what_else_is_raised_apart_is_raised_here_and_says_where():
    run = load(QUICKSTART).run
    object.__setattr__(run, "batch_size", None)  # which nothing that is loaded can have
    with pytest.raises(RuntimeError, match=r", in measure\n(.*\n)*TypeError: .*NoneType"):
        measure_apart(run, Topology.parse("v5e:1x1"), length=64, quick=True)


def test_a_process_ends_with_the_one_that_waits_for_it(monkeypatch):
    happened = []
    monkeypatch.setattr(os, "_exit", lambda code: happened.append(("ended", code)))
    apart._end_with(SimpleNamespace(join=lambda: happened.append("waited")))
    assert happened == ["waited", ("ended", 1)]
