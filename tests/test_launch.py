"""The scripts that start a run on a cluster, with recorders in place of the cluster's commands."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "scripts" / "launch"
TRAIN = ["--gin_file", "configs/my runs/a.gin", "--gin.Run.folder='/data/$x \"y\"'"]
COMPLETE = {
    "slurm": ["--nodes", "2"],
    "tpu_vm": ["pod", "--zone", "us-central2-b"],
    "gke": ["run-1", "--image", "i:1", "--accelerator", "tpu-v5-lite-podslice", "--topology", "4x4"]
    + ["--hosts", "4", "--chips-per-host", "4"],
}


@pytest.fixture
def launch(tmp_path):
    """Runs a script; returns its result and what the cluster's command was given."""
    record = tmp_path / "record"
    for name in ("sbatch", "gcloud", "kubectl"):
        recorder = tmp_path / name
        lines = [
            "#!/bin/sh",
            f'for one in "{name}" "$@"; do printf "%s\\0" "$one"; done > {record}',
            f'if [ "{name}" = kubectl ]; then cat > {record}.stdin; fi',
        ]
        recorder.write_text("\n".join(lines) + "\n")
        recorder.chmod(0o755)

    def launch(script, *arguments):
        result = subprocess.run(
            [LAUNCH / script, *arguments],
            env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
        )
        given = record.read_text().split("\0")[:-1] if record.exists() else []
        return result, given

    return launch


def test_every_script_is_here():
    assert {path.name for path in LAUNCH.iterdir()} == COMPLETE.keys()


@pytest.mark.parametrize("script", COMPLETE)
def test_help_says_how_it_is_used(launch, script):
    result, given = launch(script, "--help")
    assert result.returncode == 0
    assert result.stdout.startswith(f"usage: scripts/launch/{script} ")
    assert not given


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        *((script, COMPLETE[script], "arguments of xformer train after --") for script in COMPLETE),
        *((script, ["--wrong", "1"], "unknown argument --wrong") for script in COMPLETE),
        ("slurm", ["--nodes"], "--nodes needs a value"),
        ("slurm", ["--nodes", "two"], "--nodes must be a positive number, got 'two'"),
        ("slurm", ["--", "--gin_file", "a"], "--nodes must be a positive number, got ''"),
        ("tpu_vm", ["--zone", "z"], "NAME of the TPU VM is missing"),
        ("tpu_vm", ["pod"], "--zone is missing"),
        ("tpu_vm", ["pod", "two"], "one NAME, got pod and two"),
        ("gke", ["Run_1"], "NAME must be lower-case letters, digits and -, got 'Run_1'"),
        ("gke", ["run"], "--image is missing"),
        ("gke", [*COMPLETE["gke"], "--slices", "0"], "--slices must be a positive number, got '0'"),
    ],
)
def test_what_is_missing_or_wrong_is_named(launch, script, arguments, message):
    result, given = launch(script, *arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert "usage: " in result.stderr
    assert not given


def test_slurm_submits_a_job_that_is_requeued_when_it_was_preempted(launch):
    result, given = launch("slurm", "--nodes", "2", "--partition", "gpu", "--", *TRAIN)
    assert result.returncode == 0, result.stderr
    assert given[:9] == shlex.split(
        "sbatch --nodes 2 --ntasks-per-node 8 --gpus-per-node 8 --time 24:00:00"
    )
    assert given[9:-2] == shlex.split(
        "--partition gpu --requeue --open-mode append --signal TERM@120"
    )
    assert given[-2] == "--wrap"
    first, *rest = given[-1].splitlines()
    words = shlex.split(first.partition("srun")[2].rpartition("||")[0])
    assert words == [f"{ROOT}/.venv/bin/xformer", "train", "--plain", *TRAIN]
    assert rest[0] == "if [ $code = 75 ]; then scontrol requeue $SLURM_JOB_ID; fi"


def test_tpu_vm_runs_on_all_workers(launch):
    result, given = launch("tpu_vm", "pod", "--zone", "z", "--project", "p", "--", *TRAIN)
    assert result.returncode == 0, result.stderr
    assert given[:-1] == shlex.split(
        "gcloud compute tpus tpu-vm ssh pod --zone z --project p --worker all --command"
    )
    there, _, command = given[-1].partition(" && exec ")
    assert there == "cd xformer"
    assert shlex.split(command) == [
        ".venv/bin/xformer",
        "train",
        "--plain",
        "--distributed",
        *TRAIN,
    ]


def test_gke_applies_a_job_set(launch, tmp_path):
    result, given = launch("gke", *COMPLETE["gke"], "--slices", "2", "--volume", "c", "--", *TRAIN)
    assert result.returncode == 0, result.stderr
    assert given == ["kubectl", "apply", "-f", "-"]
    manifest = yaml.safe_load((tmp_path / "record.stdin").read_text())
    assert (manifest["kind"], manifest["metadata"]["name"]) == ("JobSet", "run-1")
    (job,) = manifest["spec"]["replicatedJobs"]
    assert job["replicas"] == 2
    assert (job["template"]["spec"]["parallelism"], job["template"]["spec"]["completions"]) == (
        4,
        4,
    )
    pod = job["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["xformer", "train", "--plain", "--distributed", *TRAIN]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4"
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "c"}
    shown, _ = launch("gke", *COMPLETE["gke"], "--print", "--", *TRAIN)
    assert shown.stdout.startswith("apiVersion: jobset.x-k8s.io/v1alpha2\n")
