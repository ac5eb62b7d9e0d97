"""A process that stops at a checkpoint: the other one ends in time and says which it was."""

import os
import socket
import subprocess
import sys
import time

import pytest

TIMEOUT_S = 5

PROGRAM = """
import os, signal, sys, time
from pathlib import Path

from orbax.checkpoint._src.multihost import multihost

from xformer import distributed, partitioning
from xformer.configurables import load
from xformer.distributed import Connection, connected
from xformer.training import checkpoints
from xformer.training.checkpoints import CheckpointStore
from xformer.training.state import blueprint, create_state

port, index, run_file, case, timeout_s = sys.argv[1:]

def stop(*args):
    if case != "commit" or "complete" in args[0]:
        os.kill(os.getpid(), signal.SIGSTOP)
    wait(*args)

def write_slowly(*args):
    if "complete" in args[0]:
        time.sleep(int(timeout_s) + 3)
    wait(*args)

place = {
    "save": (CheckpointStore, "check"),
    "first": (CheckpointStore, "check"),
    "hand over": (CheckpointStore, "_empty_trash"),
    "commit": (distributed, "wait_for_all"),
    "slow": (distributed, "wait_for_all"),
    "read": (CheckpointStore, "_read_arrays"),
}[case]
wait = distributed.wait_for_all
heartbeat_s = 10 if case == "first" else 100
connection = Connection(f"127.0.0.1:{port}", 2, int(index), heartbeat_s, timeout_s=60)
try:
    with connected(connection):
        run = load(run_file, []).run
        plan = blueprint(run, partitioning.make_mesh(run.mesh))
        state = create_state(plan, run.seed)
        folder = Path(run.folder)
        with CheckpointStore(folder, 2) as store:
            if case == "read":
                store.save(0, state, run.execution.layers, {})
                store.wait()
            distributed.meet("go")
            distributed._timeout_s = 60 if case == "first" else int(timeout_s)
            checkpoints._WRITING_S = int(timeout_s) if case == "commit" else 60
            if index == ("0" if case == "first" else "1"):
                setattr(*place, write_slowly if case == "slow" else stop)
            multihost._DEFAULT_BARRIER_TIMEOUT = int(timeout_s)
            if case == "read":
                store.restore(run, plan)
            else:
                store.save(0, state, run.execution.layers, {})
    print("saved", checkpoints.complete_steps(folder))
except ValueError as error:
    print(f"{type(error).__name__}: {error}", flush=True)
    sys.exit(2)
"""


@pytest.fixture
def start(write_run_file, compilation_cache, tmp_path):
    """Starts the program in two processes, which are killed at the end."""
    started = []

    def start(case):
        run_file = tmp_path / "run.gin"
        write_run_file(run_file, tmp_path / "run", "Run.steps = 1", "XGLMConfig.d_model = 16")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
            "JAX_COMPILATION_CACHE_DIR": compilation_cache,
        }
        command = [sys.executable, "-c", PROGRAM, str(port)]
        started.extend(
            subprocess.Popen(
                [*command, str(index), run_file, case, str(TIMEOUT_S)],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for index in range(2)
        )
        return started

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_process_that_writes_for_longer_than_others_wait_elsewhere_ends_nothing(start):
    for process in start("slow"):
        output, _ = process.communicate(timeout=120)
        assert "saved [0]" in output and process.returncode == 0, output[-3000:]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("save", f"'save step 0' within {TIMEOUT_S} s"),
        ("hand over", "where a checkpoint is handed over"),
        ("commit", f"'complete a checkpoint' within {TIMEOUT_S} s"),
        ("read", f"'read the arrays of step 0' within {TIMEOUT_S} s"),
    ],
)
def test_a_process_that_stops_at_a_checkpoint_is_named(start, case, message):
    first, second = start(case)
    _, status = os.waitpid(second.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status), first.communicate()[0]
    stopped = time.monotonic()
    output, _ = first.communicate(timeout=120)
    assert time.monotonic() - stopped < 60
    assert f"PeerError: processes [1] have not come to {message}\n" in output
    assert first.returncode != 0


def test_a_first_process_that_stops_is_a_dead_one_to_the_others(start):
    first, second = start("first")
    _, status = os.waitpid(first.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    stopped = time.monotonic()
    output, _ = second.communicate(timeout=50)
    assert second.returncode != 0 and "have not come to" not in output
    assert time.monotonic() - stopped < 40
