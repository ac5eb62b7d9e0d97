"""Runs killed at random moments, through the command line, against one that was not."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest

from xformer.training.runlog import read_metrics
from xformer.training.signals import EXIT_PREEMPTED

STEPS = 200
KILLS = 10


@pytest.fixture
def start(write_run_file, compilation_cache, tmp_path):
    """Starts `xformer train` on a run folder; returns the process."""
    environment = {
        **{key: value for key, value in os.environ.items() if key != "XLA_FLAGS"},
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": compilation_cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    processes = []

    def start(folder, steps=STEPS):
        gin_file = tmp_path / f"{folder.name}.gin"
        write_run_file(
            gin_file,
            folder,
            f"Run.steps = {steps}",
            "XGLMConfig.d_model = 32",
            "XGLMConfig.ffn_dim = 64",
            "Run.eval_every_steps = 40",
            "Run.eval_batches = 2",
            "Run.log_every_steps = 1",
            "Run.checkpoints = @Checkpoints()",
            "Checkpoints.every_steps = 10",
        )
        command = [sys.executable, "-m", "xformer.cli.main", "train", "--gin_file", str(gin_file)]
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            kill(process)


def kill(process):
    process.kill()
    process.communicate()


def finish(process):
    """Waits for a process that must succeed."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-3000:]
    return output


def newest_step(folder):
    log = folder / "metrics.jsonl"
    text = log.read_text() if log.exists() else ""
    lines = [line for line in text.splitlines()[-8:] if '"kind": "train"' in line]
    return max((int(line.split('"step": ')[1].split(",")[0]) for line in lines), default=0)


def wait_until(condition, process, timeout_s=120.0):
    end = time.monotonic() + timeout_s
    while not condition() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.001)


def every_loss(folder):
    """All losses that were ever logged, as (kind, step, bits), replayed steps included."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return {
        (record["kind"], record["step"], float(record["loss"]).hex())
        for record in records
        if record["kind"] in ("train", "validation")
    }


def final_checksums(folder):
    record = json.loads((folder / "checkpoints" / str(STEPS) / "record" / "metadata").read_text())
    return record["checksums"]


def test_ten_kills_change_no_bit(start, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(whole))
    draw = random.Random(20261121)
    for number in range(KILLS):
        process = start(killed)
        if number % 3 == 2:  # at any time: start-up, restoring, compiling, the first steps
            time.sleep(draw.uniform(0.1, 5.0))
        else:  # while it trains, evaluates or saves
            target = newest_step(killed) + draw.randint(2, 2 * STEPS // KILLS)
            wait_until(lambda: newest_step(killed) >= target, process)  # noqa: B023
            time.sleep(draw.uniform(0.0, 0.05))
        kill(process)
    assert newest_step(killed) < STEPS, "the kills came too late to mean anything"
    finish(start(killed))
    assert every_loss(killed) == every_loss(whole)
    assert final_checksums(killed) == final_checksums(whole)
    resumed = [r for r in read_metrics(killed) if r["kind"] == "event" and r["event"] == "resumed"]
    assert len(resumed) >= KILLS // 2


def test_kills_while_saving_lose_nothing_not_even_at_the_first_save(start, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(whole, steps=60))

    def saving():
        steps = killed / "checkpoints"
        folders = [p for p in steps.iterdir() if p.name.isdigit()] if steps.exists() else []
        return any(not (p / "commit_success.txt").exists() for p in folders)

    for _ in range(4):
        process = start(killed, steps=60)
        wait_until(saving, process)
        kill(process)
    finish(start(killed, steps=60))
    assert every_loss(killed) == every_loss(whole)


@pytest.mark.parametrize("phase", ["starting up", "training"])
def test_sigterm_exits_with_the_documented_code_and_the_run_can_go_on(start, tmp_path, phase):
    folder = tmp_path / "run"
    process = start(folder, steps=60)
    log = folder / "metrics.jsonl"
    if phase == "starting up":
        wait_until(lambda: log.exists() and "started" in log.read_text(), process)
    else:
        wait_until(lambda: newest_step(folder) >= 5, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == EXIT_PREEMPTED == 75, output[-3000:]
    assert "give the same command to go on" in output
    assert "finished at step 60" in finish(start(folder, steps=60))
    assert "nothing to do" in finish(start(folder, steps=60))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of sixteen megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_full_disk_ends_the_run_and_keeps_what_was_saved(start, small_disk):
    folder = small_disk / "run"
    process = start(folder)
    wait_until(lambda: (folder / "checkpoints" / "10" / "commit_success.txt").exists(), process)
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2, output[-3000:]
    # Threads of the libraries write to the same stream, sometimes on the same line.
    assert re.search(r"error: .*Run\.folder", output), output[-3000:]
    committed = {p.parent.name for p in folder.glob("checkpoints/*/commit_success.txt")}
    assert committed
    filler.unlink()
    process = start(folder)
    wait_until(lambda: '"resumed"' in (folder / "metrics.jsonl").read_text(), process)
    kill(process)
    resumed = [r for r in read_metrics(folder) if r["kind"] == "event" and r["event"] == "resumed"]
    assert [str(record["step"]) for record in resumed] == [str(max(map(int, committed)))]
