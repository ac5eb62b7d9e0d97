"""Runs of several processes, through the command line, beside one process with all devices."""

import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from xformer.training.checkpoints import complete_steps
from xformer.training.runlog import read_metrics, read_samples
from xformer.training.signals import EXIT_PREEMPTED

STEPS = 80
DEVICES = 4
HEARTBEAT_S = 10


@pytest.fixture(scope="module")
def run_file(write_run_file, tmp_path_factory):
    """Writes a run file for a new folder, which is returned beside it."""
    place, numbers = tmp_path_factory.mktemp("runs"), itertools.count()

    def write(*lines):
        number = next(numbers)
        path, folder = place / f"{number}.gin", place / str(number)
        write_run_file(
            path,
            folder,
            f"Run.steps = {STEPS}",
            "XGLMConfig.d_model = 16",
            "XGLMConfig.ffn_dim = 32",
            "XGLMConfig.dropout = 0.1",
            "Run.eval_every_steps = 20",
            "Run.eval_batches = 2",
            "Run.log_every_steps = 1",
            "Run.checkpoints = @Checkpoints()",
            "Checkpoints.every_steps = 10",
            *lines,
        )
        return path, folder

    return write


@pytest.fixture(scope="module")
def start(compilation_cache):
    """Starts all processes of a run, which share four devices; those left are killed at the end."""
    started = []

    def start(run_file, count, *, of_each=None):
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES // count}",
            "PYTHONFAULTHANDLER": "1",  # aborted, they say where they were
            "JAX_COMPILATION_CACHE_DIR": compilation_cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        processes = []
        for index in range(count):
            command = [sys.executable, "-m", "xformer.cli.main", "train", "--plain"]
            command += ["--gin_file", str(run_file), "--gin.AdamW.learning_rate=3e-4"]
            if count > 1:
                command += ["--coordinator", f"127.0.0.1:{port}", "--process_count", str(count)]
                command += ["--process_index", str(index), "--heartbeat_s", str(HEARTBEAT_S)]
            processes.append(
                subprocess.Popen(
                    [*command, *(of_each or {}).get(index, [])],
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
        started.extend(processes)
        return processes

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


def outputs(processes, code, timeout_s=300):
    """What processes printed that must all end with a code; within a time, or they are aborted."""
    watch = threading.Timer(
        timeout_s, lambda: [process.send_signal(signal.SIGABRT) for process in processes]
    )
    watch.start()
    printed = [process.communicate()[0] for process in processes]
    watch.cancel()
    codes = [process.returncode for process in processes]
    assert codes == [code] * len(processes), "\n".join(text[-8000:] for text in printed)
    return printed


def wait_until(condition, processes, timeout_s=90.0):
    end = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < end:
        assert all(one.poll() is None for one in processes), "a process has ended too early"
        time.sleep(0.005)


def newest_step(folder):
    return max(complete_steps(folder / "checkpoints"), default=0)


def losses(folder):
    """The last loss that was logged, by kind and step."""
    return {
        (record["kind"], record["step"]): record["loss"]
        for record in read_metrics(folder)
        if record["kind"] in ("train", "validation")
    }


def assert_same_losses(folder, whole):
    found, wanted = losses(folder), losses(whole)
    assert found.keys() == wanted.keys()
    for place, loss in wanted.items():
        np.testing.assert_allclose(found[place], loss, rtol=1e-6, err_msg=str(place))


@pytest.fixture(scope="module")
def shared(run_file, start):
    """The folder of a run of two processes that nothing disturbs, and what they printed."""
    file, folder = run_file('Run.sample_prompts = ("The",)')
    return folder, outputs(start(file, 2), 0)


def test_two_and_four_processes_train_like_one(run_file, start, shared):
    file, whole = run_file('Run.sample_prompts = ("The",)')
    outputs(start(file, 1), 0)
    folder, (first, second) = shared
    assert_same_losses(folder, whole)
    assert [s["continuation"] for s in read_samples(folder)] == [
        s["continuation"] for s in read_samples(whole)
    ]
    file, folder_of_four = run_file()
    outputs(start(file, 4), 0)
    assert_same_losses(folder_of_four, whole)
    assert f"finished at step {STEPS}" in first
    assert "at step" not in second
    assert (folder / "report.html").exists()


def test_a_killed_process_ends_the_others_and_two_go_on_bit_for_bit(run_file, start, shared):
    file, folder = run_file()
    for killed in (1, 0):  # the second time the one that all are connected to
        before, processes = newest_step(folder), start(file, 2)
        wait_until(lambda: newest_step(folder) > before, processes)  # noqa: B023
        processes[killed].kill()
        processes[killed].communicate()
        end = time.monotonic() + 2 * HEARTBEAT_S
        output, _ = processes[1 - killed].communicate(timeout=120)
        assert processes[1 - killed].returncode not in (0, EXIT_PREEMPTED), output[-3000:]
        assert time.monotonic() < end
    assert newest_step(folder) < STEPS, "the kills came too late to mean anything"
    outputs(start(file, 2), 0)
    assert losses(folder) == losses(shared[0])


def test_killed_runs_go_on_with_other_numbers_of_processes(run_file, start, shared):
    file, folder = run_file()
    for count in (2, 4, 2):
        before, processes = newest_step(folder), start(file, count)
        wait_until(lambda: newest_step(folder) > before, processes)  # noqa: B023
        processes[1].kill()
        for process in processes:
            output, _ = process.communicate(timeout=120)
            assert process.returncode not in (0, EXIT_PREEMPTED), output[-3000:]
    assert newest_step(folder) < STEPS, "the kills came too late to mean anything"
    outputs(start(file, 1), 0)
    assert_same_losses(folder, shared[0])


def catches_sigterm(process):
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16)
    return caught >> (signal.SIGTERM - 1) & 1


def test_a_signal_before_the_first_step_ends_all_alike(run_file, start, shared):
    file, folder = run_file()
    processes = start(file, 2)
    wait_until(lambda: catches_sigterm(processes[1]), processes)
    assert not folder.exists()
    processes[1].send_signal(signal.SIGTERM)
    first, _ = outputs(processes, EXIT_PREEMPTED)
    assert "SIGTERM at process 1" in first
    assert "stopped before the first step" in first
    assert not complete_steps(folder / "checkpoints") and not losses(folder)
    outputs(start(file, 2), 0)
    assert losses(folder) == losses(shared[0])


def test_a_signal_to_one_process_saves_on_all_and_other_counts_go_on(run_file, start, shared):
    file, folder = run_file()
    processes = start(file, 4)
    wait_until(lambda: newest_step(folder), processes)
    processes[2].send_signal(signal.SIGTERM)
    first, *others = outputs(processes, EXIT_PREEMPTED)
    assert "give the same command to go on" in first
    assert "SIGTERM at process 2" in first
    assert not any("go on" in output for output in others)
    preempted = [r["step"] for r in read_metrics(folder) if r.get("event") == "preempted"]
    assert preempted == [newest_step(folder)]
    assert newest_step(folder) < STEPS
    outputs(start(file, 1), 0)
    assert_same_losses(folder, shared[0])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--gin.Run.seed=1"],
            "all processes of a run must have the same settings: Run.seed is 0 at process 0 and 1 "
            "at 1",
        ),
        (["--gin.Run.sed=1"], "process 1: .*sed"),
    ],
    ids=["other settings", "a bad file"],
)
def test_a_process_with_another_config_stops_all_and_is_named(run_file, start, flags, message):
    file, folder = run_file()
    first, second = outputs(start(file, 2, of_each={1: flags}), 2)
    assert re.search(message, first)
    assert not folder.exists()


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def test_damage_that_one_process_finds_makes_all_go_back_or_none(run_file, start):
    file, folder = run_file(
        "Run.mesh = @MeshConfig()",
        "MeshConfig.fsdp = 4",
        "Checkpoints.keep = 4",
        'Run.sample_prompts = ("The",)',
    )
    outputs(start(file, 2, of_each=steps(40)), 0)
    before, checkpoints = losses(folder), folder / "checkpoints"
    (sample,) = read_samples(folder)  # of weights that no process has all of
    assert sample["step"] == 40 and sample["continuation"]
    # Only process 1 reads the parts that its devices hold.
    parts = (checkpoints / "40" / "state" / "ocdbt.process_1" / "d").iterdir()
    truncate(max(parts, key=lambda path: path.stat().st_size))
    truncate(checkpoints / "30" / "record" / "metadata")
    truncate(checkpoints / "20" / "state" / "_METADATA")
    first, _ = outputs(start(file, 2, of_each=steps(44)), 0)
    assert "resumed at step 10" in first
    assert re.search("quarantined at step 40  reason process 1: ", first)
    assert sorted(path.name for path in (folder / "quarantine").iterdir()) == [
        "20.0",
        "30.0",
        "40.0",
    ]
    assert {place: loss for place, loss in losses(folder).items() if place[1] <= 40} == before
    for step in complete_steps(checkpoints):
        truncate(checkpoints / str(step) / "record" / "metadata")
    for output in outputs(start(file, 2, of_each=steps(48)), 2):
        assert "could be verified" in output
    assert newest_step(folder) == 44


def steps(number):
    """Flags that end a run of two processes sooner."""
    return {index: [f"--gin.Run.steps={number}"] for index in range(2)}
