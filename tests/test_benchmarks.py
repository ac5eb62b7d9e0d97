"""scripts/benchmarks/peers.py: nothing is reported whose outputs differ, and all of the rest is."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "scripts" / "benchmarks"
CASES = {  # one of each family, and what agrees in it
    "squeezebert-train-8x128": {"loss", "gradient", "loss after a step", "gradient after a step"},
    "bigbird-attention-gradient-random-1024": {f"gradient of {one}" for one in ("queries", "keys")}
    | {"gradient of values"},
    "xglm-decode-1": {"tokens"},
    "umt5-gradient": {"loss", "gradient"},
    "vocabulary-loss": {"loss", "gradient of states"},
}


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)


def peers(*arguments):
    command = [sys.executable, FOLDER / "peers.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=900)


def side(seconds=(2.0, 2.0), units=1, **figures):
    from comparing.measuring import side_record

    figures = {"flops": 100, "bytes": 10, "temporary": 500, "compile": 1.0, **figures}
    least = {kind: figures[kind] / units for kind in ("flops", "bytes")}
    return side_record(figures, units, list(seconds), least, {"flops": 100.0, "bytes": 100.0})


def record(ours, theirs, *goals):
    from comparing.measuring import goal_record

    sides = {"xformer": ours, "peer": theirs}
    stands = [goal_record(goal, sides) for goal in goals]
    return {"name": "a", "work": "Work", "note": "Note.", "sides": sides, "goals": stands}


def case(**changes):
    from comparing.case import Case, Side

    sides = {name: Side(lambda setting: None) for name in ("xformer", "peer")}
    sides["larger"] = Side(lambda setting: None, another=True)
    return Case(**{"name": "a-b", "work": "Work", "sides": sides, "goals": (), **changes})


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        ({"x": np.array([1.0, 2.001])}, "x of peer and of xformer differ by 0.0005 of the largest"),
        ({"x": np.ones(3)}, "differ by inf"),
        ({"x": np.array([1.0, np.nan])}, "not finite"),
        ({"y": np.ones(2)}, "peer has no output that another side has"),
    ],
)
def test_outputs_that_differ_are_refused(theirs, said):
    from comparing.measuring import Disagreement, agreement

    with pytest.raises(Disagreement, match=said):
        agreement(case(), {"xformer": {"x": np.array([1.0, 2.0])}, "peer": theirs})


def test_tokens_must_be_the_same():
    from comparing.measuring import Disagreement, agreement

    tokens = np.array([[1, 2, 3]])
    assert agreement(case(), {"xformer": {"x": tokens}, "peer": {"x": tokens}}) == {"x": 0.0}
    with pytest.raises(Disagreement):
        agreement(case(), {"xformer": {"x": tokens}, "peer": {"x": tokens + 1}})


def test_what_another_model_computes_is_not_compared():
    from comparing.measuring import agreement

    one = {"x": np.array([1.0, 2.0])}
    outputs = {"xformer": one, "peer": {"x": one["x"] + 1e-5}, "larger": {"x": np.zeros(2)}}
    assert agreement(case(), outputs) == {"x": pytest.approx(5e-6, rel=1e-2)}


def test_memory_is_in_huge_pages_where_the_row_says_so(tmp_path, monkeypatch):
    from comparing.case import Setting
    from comparing.worker import _environment

    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.perturb=0")
    on_cpu, on_gpu = (Setting(tmp_path, True, 2, platform) for platform in ("cpu", "gpu"))
    assert "hugetlb=1" in _environment(on_cpu, huge_pages=True)["GLIBC_TUNABLES"]
    for setting, asked in ((on_cpu, False), (on_gpu, True)):
        tunables = _environment(setting, huge_pages=asked)["GLIBC_TUNABLES"]
        assert tunables == "glibc.malloc.perturb=0"
    assert case(note="Note.", huge_pages=True).remarks == "Note. Memory in huge pages."
    assert [case(note=note).remarks for note in ("Note.", "")] == ["Note.", ""]


def test_ratios_are_those_of_turns_and_per_unit():
    from comparing.case import Goal

    goals = [Goal("peer", 2.0, 4.0), Goal("peer", 1.0, 2.0, measure="temporary")]
    found = record(side((1.0, 2.0, 3.0)), side((3.0, 4.0, 30.0), temporary=400), *goals)
    assert [one["ratio"] for one in found["goals"]] == [3.0, 0.8]
    assert found["goals"][0]["quartiles"] == [2.5, 6.5]
    assert [one["met"] for one in found["goals"]] == [True, False]
    long, brief = side((32.0,), units=16, temporary=8000), side((2.0,))
    assert [one["ratio"] for one in record(long, brief, *goals)["goals"]] == [1.0, 1.0]


def test_what_bounds_a_program_is_the_slower_of_both():
    assert (side()["bound"], side()["of_limit"]) == ("flops", 0.5)
    assert (side(bytes=150)["bound"], side(bytes=150)["of_limit"]) == ("bytes", 0.75)


def test_a_share_of_the_limit_is_a_goal_without_a_peer():
    from comparing import reporting
    from comparing.case import Goal

    goal = Goal("xformer", 0.45, 0.6, measure="of_limit")
    found = record(side((1.0, 2.0, 4.0)), side(), goal)
    (stands,) = found["goals"]
    assert (stands["ratio"], stands["quartiles"], stands["met"]) == (0.5, [0.375, 0.75], True)
    row = ("Work", "the machine's limit", "0.50 (0.38-0.75)", "0.45", "0.6", "met", "2 s", "1 s")
    assert reporting.rows([found]) == [(*row, "50%")]


def test_the_table_of_sides_shows_what_is_known_of_each():
    from comparing import reporting

    ours = side((1.0, 2.0, 3.0), temporary=5e8, peak=1e9, flops=2e9, bytes=3e6)
    found = {"work": "Work", "sides": {"xformer": ours, "peer": {"peak": 2e6}}}
    shown = reporting.sides([found, {"work": "Other", "refused": "x differs"}])
    times = ("2 s (-25% to +25%)", f"{ours['of_limit']:.0%}")
    assert shown[0] == ("Work", "xformer", *times, "1,000 MB", "500 MB", "1 s", "2 G", "3 MB")
    assert shown[1] == ("Work", "peer", "", "", "2 MB", "", "", "", "")


def test_the_limit_is_that_of_the_fewest_operations():
    from comparing.measuring import least_of

    figures = {"a": {"flops": 40, "bytes": 8}, "b": {"flops": 15}, "c": {}}
    assert least_of(figures, {"a": 4, "b": 1, "c": 1}) == {"flops": 10.0, "bytes": 2.0}


def test_the_table_the_picture_and_the_page_show_all_and_what_was_refused():
    from comparing import reporting
    from comparing.case import Goal

    records = [
        record(side(), side((3.0, 5.0)), Goal("peer", 1.5, 4.0)),
        {"name": "b", "work": "Other", "note": "", "refused": "x differs"},
    ]
    machine = {
        "date": "2026-01-02",
        "threads": 2,
        "device": "CPU",
        "runs": 7,
        "quick": False,
        "load": 0.1,
    }
    machine["versions"] = {"jax": "1.2"}
    text = reporting.document(records, machine)
    assert "2026-01-02, 2 threads of CPU, jax 1.2; 7 runs in turns; load 0.1 before.\n" in text
    assert "| Work | peer, time | 2.00 (1.75-2.25) | 1.5 | 4 | met | 2 s | 4 s | 50% |" in text
    assert "| Other |  | refused: x differs |" in text and "- Work: Note." in text
    picture = reporting.picture(records, "Title")
    assert picture.startswith("<svg") and "2.00" in picture and "peer, time" in picture
    page = reporting.html(records, machine)
    assert "1 of 1 met" in page and "refused: x differs" in page


def test_a_document_gets_the_table_between_its_marks():
    from comparing import reporting

    text = f"before\n{reporting.BEGINS}\nold\n{reporting.ENDS}\nafter"
    assert reporting.put_into(text, "new") == text.replace("old", "new")
    for wrong in ("none", text + reporting.BEGINS, reporting.ENDS + reporting.BEGINS):
        with pytest.raises(ValueError, match="once each"):
            reporting.put_into(wrong, "new")


def test_what_is_for_gpus_alone_is_left_out_elsewhere_or_refused_by_name():
    from comparing import every

    names = {name for name, one in every.CASES.items() if one.platform == "gpu"}
    assert {"bigbird-kernels-65536", "umt5-kernels-4096", "xglm-1.7b-train"} < names
    one = every.CASES["xglm-1.7b-train"]
    assert one.is_for("gpu", quick=False) and one.is_for("cpu", quick=True)
    assert not one.is_for("cpu", quick=False)
    done = peers("--only", one.name, "--runs", "1")
    assert done.returncode == 1 and f"{one.name}: for a GPU alone" in done.stderr


@pytest.fixture
def small(tmp_path):
    from comparing.case import Setting

    return Setting(tmp_path, quick=True, threads=1, platform="cpu", dtype="bfloat16")


@pytest.mark.reference
def test_the_blocks_that_flex_attention_is_told_of_are_those_of_the_plan(small):
    from comparing import block_attention, kernels
    from comparing.measuring import agreement

    length = kernels.sparse_length(4096, small)
    core = block_attention.core_of(length, small, drawn=True)
    ours = kernels.gradients_of(core, *block_attention.arrays_of(length, small))
    theirs = kernels.flex(small, length=4096)
    found = {"xformer": ours.outputs(), "peer": theirs.outputs()}
    assert len(agreement(case(tolerance=0.02), found)) == 3
    assert ours.units == theirs.units == length


def test_attention_with_a_materialised_bias_is_that_of_cudnn(small):
    from comparing import kernels
    from comparing.measuring import agreement

    found = [kernels.with_bias(small, length=1024, core=core) for core in ("xla", "cudnn")]
    outputs = dict(zip(("xformer", "peer"), (one.outputs() for one in found), strict=True))
    assert len(agreement(case(tolerance=0.02), outputs)) == 4


def test_the_command_says_what_it_does_and_names_its_cases():
    assert re.search(r"--keep +leave out what", peers("--help").stdout)
    listed = peers("--list").stdout.splitlines()
    assert len(listed) >= 25 and {line.split(": ")[0] for line in listed} > CASES.keys()
    assert len(peers("--list", "--family", "umt5").stdout.splitlines()) == 6


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Small cases of every family, from the command line."""
    folder = tmp_path_factory.mktemp("peers")
    for name in ("page.md", "brief.md"):
        marks = "<!-- peers.py writes from here -->\n<!-- to here -->"
        (folder / name).write_text(marks, encoding="utf-8")
    options = ["--quick", "--runs", "1", "--json", folder / "all.json", "--keep"]
    options += ["--into", folder / "page.md", "--brief", folder / "brief.md", "--only", *CASES]
    return folder, options, peers(*options)


@pytest.mark.reference
def test_a_case_of_each_family_is_compared_and_timed(measured):
    folder, _, done = measured
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((folder / "all.json").read_text())
    assert [one["name"] for one in found["cases"]] == list(CASES)
    for one in found["cases"]:
        assert CASES[one["name"]] <= one["agreement"].keys()
        ours = one["sides"]["xformer"]
        assert ours["seconds"] > 0 and ours["peak"] > 0 and 0 < ours["of_limit"] < 2
        assert all(goal["ratio"] > 0 for goal in one["goals"])
        assert f"{one['name']}: turn 1 of 1" in done.stderr
    assert done.stdout.strip() in (folder / "page.md").read_text()
    brief = (folder / "brief.md").read_text()
    wanted = [goal for one in found["cases"] for goal in one["goals"] if goal["at_least"]]
    assert brief.count("\n|") == 2 + len(wanted) and f"| {wanted[0]['ratio']:.2f}" in brief


@pytest.mark.reference
def test_what_was_measured_is_not_measured_again(measured):
    folder, options, first = measured
    found = json.loads((folder / "all.json").read_text())
    found["cases"][0]["date"], today = "2020-02-02", found["cases"][0]["date"]
    (folder / "all.json").write_text(json.dumps(found))
    before = (folder / "all.json").read_bytes()
    again = peers(*options)
    assert again.returncode == 0 and not again.stderr
    assert again.stdout == first.stdout.replace(today, f"2020-02-02 to {today}")
    assert (folder / "all.json").read_bytes() == before
    other = peers(*options[: -len(CASES) - 1], "--runs", "2", "--only", *CASES)
    assert other.returncode == 1 and "made with other runs; leave --keep out" in other.stderr


@pytest.mark.reference
def test_nothing_stays_behind_when_it_is_stopped(tmp_path):
    command = [sys.executable, FOLDER / "peers.py", "--quick", "--only", "vocabulary-loss"]
    with subprocess.Popen(
        [*command, "--scratch", tmp_path], stderr=subprocess.PIPE, text=True
    ) as process:
        while "is built" not in process.stderr.readline():
            assert process.poll() is None
        process.terminate()
        process.stderr.read()
        assert process.wait() == 143
    assert not list(tmp_path.iterdir())


def test_a_process_that_ends_early_refuses_its_case(tmp_path):
    from comparing.case import Setting
    from comparing.measuring import run_case

    said = []
    script = tmp_path / "peers.py"
    script.write_text("raise SystemExit('no such thing')")
    setting = Setting(tmp_path, True, 1, "cpu")
    found = run_case(case(), script=script, setting=setting, runs=1, rates={}, say=said.append)
    assert found["refused"] == "the process of xformer ended early, with status 1"
    assert said[-1] == "no such thing"
