"""The script that plans many sizes."""

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import pytest

from xformer.configurables import load
from xformer.partitioning import MeshConfig
from xformer.plan.topology import Topology

SCRIPT = Path(__file__).parents[2] / "scripts" / "plan_sizes.py"


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("plan_sizes", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "plan_sizes", module)  # where dataclasses look for types
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(script, invented, monkeypatch, tmp_path):
    """Runs it with plans that are made up, and counts these; on 256 chips one is refused."""
    made = []
    stop_at = None

    def measure(run, topology, *, length, quick):
        made.append(topology.name)
        if topology.chips == 256 and topology.chip.name == "v5e":
            raise ValueError("the compiler crashed")
        if topology.name == stop_at:
            raise KeyboardInterrupt
        return dataclasses.replace(invented, topology=topology, batch_size=run.batch_size)

    monkeypatch.setattr(script, "measure_apart", measure)

    def call(*arguments, stop=None):
        nonlocal stop_at
        stop_at = stop
        monkeypatch.setattr(sys, "argv", ["plan_sizes", *arguments, "--out", str(tmp_path)])
        call.code = script.main()
        return made

    return call


def test_every_case_is_a_run_that_its_topology_can_hold(script):
    tables = script.SCALING, script.published()
    for cases in tables:
        assert len({case.file_name for case in cases}) == len(cases)
    for case in [*tables[0], *tables[1]]:
        size = script.size_bindings(case.size) if case.size else []
        run = load(script.CONFIGS / "runs" / f"{case.run}.gin", [*size, *case.bindings]).run
        topology = Topology.parse(case.topology, case.slices)
        shape = dataclasses.replace(run.mesh, slices=case.slices).shape(topology.device_count)
        assert run.batch_size % (shape["data"] * shape["fsdp"] * run.accumulation_steps) == 0


def test_rows_of_a_chip_are_the_same_at_every_scale(script):
    found = {}
    for case in script.SCALING:
        run = load(script.CONFIGS / "runs" / f"{case.run}.gin", list(case.bindings)).run
        chips = Topology.parse(case.topology, case.slices).chips
        found.setdefault(case.label, []).append((chips, run.batch_size / chips))
    assert found == {
        "XGLM-7.5B": [(16, 1), (64, 1), (256, 1), (1024, 1)],
        "UMT5-xxl": [(16, 8), (64, 8), (256, 8), (1024, 8)],
    }


def test_every_published_size_is_planned_on_two_topologies(script):
    sizes = {case.size for case in script.published()}
    files = (script.CONFIGS / "models").glob("*/*.gin")
    named = {f"{path.parent.name}/{path.stem}" for path in files if path.stem != "tiny"}
    assert named - sizes == {"umt5/large"}  # of the paper, not released
    assert sizes <= named


def test_a_size_is_that_of_its_file(script):
    run = load(
        script.CONFIGS / "runs" / "pretrain_xglm_7.5b.gin", script.size_bindings("xglm/2.9b")
    ).run
    assert (run.model.num_layers, run.model.d_model) == (48, 2048)
    assert run.mesh == MeshConfig(fsdp=64, tensor=4)


def test_plans_are_kept_and_not_made_again(script, run, tmp_path, capsys):
    made = run("scaling", "--quick", "--svg", str(tmp_path / "svg"))
    assert len(made) == len(script.SCALING) == 8
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 2 + 8 and {line.count("|") for line in table} == {12}
    assert "| 16, v5e:4x4 |" in table[2] and "the compiler crashed" in table[4]
    names = ["weak_scaling_umt5-xxl.svg", "weak_scaling_xglm-7.5b.svg"]
    assert sorted(path.name for path in (tmp_path / "svg").iterdir()) == names
    (tmp_path / "scaling_quick" / "UMT5-xxl_v5p_2x2x4.json").unlink()
    changed = tmp_path / "scaling_quick" / "UMT5-xxl_v5p_4x4x4.json"
    changed.write_text(json.dumps({"asked": {}, **json.loads(changed.read_text())} | {"asked": 1}))
    run("scaling", "--quick")
    assert made[8:] == ["v5p:2x2x4", "v5p:4x4x4"]
    assert capsys.readouterr().out.splitlines() == table
    run("scaling")
    assert len(made) == 8 + 2 + 8  # the full plans are others


def test_an_interrupt_shows_what_there_is_and_the_next_call_goes_on(run, capsys):
    made = run("scaling", stop="v5p:2x2x4")
    said = capsys.readouterr()
    assert run.code == 130 and "interrupted: 4 of 8 plans" in said.err
    assert len(said.out.splitlines()) == 2 + 4
    run("scaling")
    assert run.code == 0 and made[5:] == ["v5p:2x2x4", "v5p:4x4x4", "v5p:4x8x8", "v5p:8x8x16"]
    assert len(capsys.readouterr().out.splitlines()) == 2 + 8


def test_the_table_of_published_sizes_has_one_row_for_each_plan(script, run, capsys):
    run("published")
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 2 + 24
    assert table[2].startswith("| SqueezeBERT-base |") and "| 128 x 64 |" in table[2]
