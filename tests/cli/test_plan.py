"""`xformer plan` as a user calls it."""

import html
import importlib.util
import json
import shlex
from pathlib import Path

import pytest

from xformer.cli import plan as command
from xformer.cli.main import main
from xformer.plan.compilation import Bounds, Memory, Plan

QUICKSTART = str(Path(__file__).parents[2] / "configs" / "runs" / "quickstart.gin")
SMALL = ["--length", "64", "--gin.Run.batch_size=4", "--quick"]


@pytest.fixture
def plan():
    def call(*arguments):
        return main(["plan", "--gin_file", QUICKSTART, *arguments])

    return call


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu: requirements/plan.txt"
)


@needs_libtpu
def test_plan_is_printed_and_written_as_json_and_as_a_page(plan, tmp_path, capsys):
    path, page = tmp_path / "plan.json", tmp_path / "plan.html"
    written = ("--json", str(path), "--html", str(page))
    assert plan("--topology", "v5e:2x2", *SMALL, *written) == 0
    said = capsys.readouterr().out
    assert "of 15.75 GiB: fits" in said and "a step takes at least" in said
    found = json.loads(path.read_text())
    assert (found["topology"], found["fits"], found["chips"]) == ("v5e:2x2", True, 4)
    assert said.strip() in html.unescape(page.read_text())


@needs_libtpu
def test_plan_of_what_does_not_fit_says_what_to_change_and_fails(plan, capsys):
    large = "--gin.XGLMConfig.vocab_size=512000"
    assert plan("--topology", "v5e:2x2", "--length", "512", large, "--gin.Run.batch_size=4096") == 1
    said = capsys.readouterr().out
    assert "DOES NOT FIT" in said and "to make it fit:" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--topology", "v5e:17x16"), "at most 256 chips"),
        (("--topology", "a100:8"), "the topology's chip must be one of"),
        (("--topology", "v5e:2x2", "--slices", "0"), "MeshConfig.slices must be at least 1|slice"),
    ],
)
def test_plan_of_no_topology_is_refused(plan, arguments, message, capsys):
    assert plan(*arguments) == 2
    assert message.split("|")[-1] in capsys.readouterr().err


@needs_libtpu
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--topology", "v5e:2x2"), "pass --length"),
        (("--topology", "v5e:3x5", "--length", "64"), "libtpu has no topology v5e:3x5"),
        (
            ("--topology", "v5e:2x2", "--length", "64", "--gin.MeshConfig.fsdp=3"),
            "must multiply to the 4 devices",
        ),
    ],
)
def test_plan_that_cannot_be_made_is_refused(plan, arguments, message, capsys):
    assert plan(*arguments) == 2
    assert message in capsys.readouterr().err


def test_plan_without_the_compiler_says_how_to_install_it(plan, monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "libtpu" else found(name)
    )
    assert plan("--topology", "v5e:2x2", *SMALL) == 2
    assert "pip install 'xformer-jax[plan]'" in capsys.readouterr().err


@pytest.fixture
def instant(monkeypatch):
    """Plans without compiling: what is recomputed fits, and tensor ways cost time."""

    def measure(run, topology, *, gpu_target, length, quick):
        assert (topology.device_count, gpu_target, length, quick) == (4, None, 64, True)
        fits = run.execution.remat != "none"
        return Plan(
            topology=topology,
            mesh=run.mesh.shape(4),
            execution=run.execution,
            batch_size=run.batch_size,
            accumulation_steps=1,
            rows={"input_ids": (length,)},
            parameters=1000,
            state_bytes=12000,
            flops=10**12,
            recomputed=0,
            memory=Memory(12000, 12000, 12000, 10**6, 10**6) if fits else None,
            required=None if fits else 1e12,
            collectives=(),
            least=(),
            bounds=Bounds(0.1 * run.mesh.tensor, 0.05, 0.0, 0.0) if fits else None,
        )

    monkeypatch.setattr(command, "measure_apart", measure)


def test_sweep_shows_the_best_and_writes_all_trials(plan, instant, tmp_path, capsys):
    path = tmp_path / "sweep.json"
    recompute = ["--gin.Run.execution=@Execution()", '--gin.Execution.remat="full"']
    page = tmp_path / "sweep.html"
    written = ["--json", str(path), "--html", str(page)]
    sweep = ["--topology", "v5e:2x2", *SMALL[:3], "--sweep", *written, *recompute]
    assert plan(*sweep) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0].split() == ["mesh", "rows", "remat", "needed", "step", "tokens/s", "slowest"]
    assert "tensor" not in lines[1] and lines[1].split()[-1] == "compute"
    assert "the best: " in lines[-1] and "--gin.Run.batch_size=8" in lines[-1]
    assert len(said.err.splitlines()) == len(json.loads(path.read_text()))
    assert "quickstart on v5e:2x2" in page.read_text() and "All trials" in page.read_text()


@pytest.mark.parametrize("topology", [("v5e:2x2",), ("v5e:1x2", "--slices", "2")])
def test_what_a_sweep_finds_best_can_be_asked_for(plan, instant, topology, capsys):
    assert plan("--topology", *topology, *SMALL[:3], "--sweep") == 0
    best = capsys.readouterr().out.splitlines()[-1].removeprefix("the best: ")
    arguments = ["show-config", "--gin_file", QUICKSTART, *shlex.split(best), "--devices", "4"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "Execution.remat = 'minimal'" in said and "Run.batch_size = 8\n" in said
    assert f"MeshConfig.slices = {len(topology) // 3 + 1}\n" in said


def test_sweep_of_which_nothing_fits_says_so_and_fails(plan, instant, monkeypatch, capsys):
    monkeypatch.setattr("xformer.plan.sweep.REMAT_POLICIES", ("none",))
    assert plan("--topology", "v5e:2x2", *SMALL[:3], "--sweep") == 1
    assert "nothing that was tried fits" in capsys.readouterr().out
