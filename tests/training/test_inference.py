"""`xformer eval` and `xformer generate` on a run folder that has been moved."""

import dataclasses
import io
import json

import jax
import numpy as np
import pytest

from xformer.cli.main import main
from xformer.layers.execution import Execution
from xformer.partitioning import MeshConfig
from xformer.training.inference import load_trained
from xformer.training.loop import train
from xformer.training.runlog import read_metrics


@pytest.fixture(scope="module")
def run_folder(write_run_file, tmp_path_factory):
    """A finished run, made by the command line and then moved."""
    place = tmp_path_factory.mktemp("inference")
    gin_file = place / "run.gin"
    write_run_file(
        gin_file,
        place / "run",
        "Run.steps = 6",
        "XGLMConfig.d_model = 16",
        "XGLMConfig.ffn_dim = 32",
        "Run.execution = @Execution()",
        'Execution.layers = "scan"',
    )
    assert main(["train", "--gin_file", str(gin_file), "--plain"]) == 0
    return (place / "run").rename(place / "moved")


def output_of(capsys, *arguments):
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    return code, capsys.readouterr()


def test_eval_gives_what_the_run_logged(run_folder, corpus, capsys):
    logged = [r for r in read_metrics(run_folder) if r["kind"] == "validation"][-1]
    code, out = output_of(capsys, "eval", run_folder, "--json")
    scores = json.loads(out.out)
    assert code == 0 and scores["step"] == 6 and scores["tokens"] == logged["tokens"]
    assert scores["loss"] == pytest.approx(logged["loss"], rel=1e-6)
    code, out = output_of(capsys, "eval", run_folder, "--data", corpus / "train")
    assert code == 0 and out.out.startswith("step 6: loss ")
    code, out = output_of(capsys, "eval", run_folder, "--batches", 1, "--json")
    assert json.loads(out.out)["tokens"] < scores["tokens"]


def test_eval_takes_bindings_for_the_command_alone(run_folder, capsys):
    _, plain = output_of(capsys, "eval", run_folder, "--json")
    code, half = output_of(capsys, "eval", run_folder, "--json", "--gin.Execution.dtype='bfloat16'")
    losses = [json.loads(out.out)["loss"] for out in (plain, half)]
    assert code == 0 and losses[0] != losses[1]
    np.testing.assert_allclose(*losses, rtol=1e-2)


def test_eval_scores_the_weights_that_decoding_keeps(run_folder, capsys):
    losses = {}
    for weights in (None, "int8", "bfloat16"):
        flags = ("--weights", weights) if weights else ()
        code, out = output_of(capsys, "eval", run_folder, "--json", *flags)
        assert code == 0, out.err
        losses[weights] = json.loads(out.out)["loss"]
    assert len({*losses.values()}) == 3
    np.testing.assert_allclose(losses["int8"], losses[None], rtol=2e-3)
    with pytest.raises(SystemExit):  # it would change nothing
        output_of(capsys, "eval", run_folder, "--weights", "float32")
    capsys.readouterr()
    code, out = output_of(
        capsys, "generate", run_folder, "The", "--max-new-tokens", 3, "--weights", "int8"
    )
    assert code == 0 and out.out.startswith("The")


def test_generate_continues_every_prompt(run_folder, capsys, monkeypatch):
    code, out = output_of(
        capsys, "generate", run_folder, "The", "def f", "--max-new-tokens", 5, "--json"
    )
    lines = [json.loads(line) for line in out.out.splitlines()]
    assert code == 0 and [line["prompt"] for line in lines] == ["The", "def f"]
    drawn = [
        output_of(capsys, "generate", run_folder, "The", "--temperature", 5, "--seed", seed)[1].out
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    monkeypatch.setattr("sys.stdin", io.StringIO("The\n\ndef f\n"))
    code, from_stdin = output_of(capsys, "generate", run_folder, "--max-new-tokens", 5, "--json")
    assert from_stdin.out == out.out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--max-new-tokens", "0"], "--max-new-tokens must be at least 1"),
        (["--top-k", "3"], "--top-k is for drawn tokens: give --temperature"),
        (["--temperature", "-1"], "--temperature must not be negative"),
    ],
)
def test_generate_refuses(run_folder, capsys, arguments, message):
    code, out = output_of(capsys, "generate", run_folder, "The", *arguments)
    assert code == 2 and message in out.err


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    for command in (["eval", tmp_path], ["generate", tmp_path, "The"]):
        code, out = output_of(capsys, *command)
        assert code == 2 and "is no run folder" in out.err


def test_a_run_is_used_on_other_devices_than_it_was_trained_on(make_run):
    run = make_run(mesh=MeshConfig(data=2, fsdp=2, tensor=2), validation_data=None)
    train(run, plain=True)
    there = load_trained(run)
    assert there.run.mesh == run.mesh and there.plan.mesh.size == 8
    elsewhere = dataclasses.replace(run, mesh=MeshConfig(fsdp=3), batch_size=12)
    here = load_trained(elsewhere)
    assert here.run.mesh == MeshConfig() and here.run.batch_size == 16
    same = jax.tree.map(np.array_equal, here.params, there.params)
    assert jax.tree.all(same)
    unstacked = load_trained(dataclasses.replace(run, execution=Execution(layers="scan")))
    assert list(unstacked.params["model"]["layers"]) == ["stacked"]
