"""Meetings of real processes, and what is refused before any is started."""

import os
import re
import socket
import subprocess
import sys
import time

import pytest

from xformer import distributed
from xformer.cli.main import main
from xformer.distributed import Connection, is_cluster, meet, of_first

PROGRAM = """
import sys, time
from xformer import distributed
from xformer.distributed import Connection, connected, meet, of_first, process_index
from xformer.training.agreement import agreed, check_processes
from xformer.training.integrity import DamagedError

def read():
    if case == "damaged" and index == 1:
        raise DamagedError("half a file")
    return index

port, index, case = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
try:
    timeout_s = 3 if case == "late" else 60
    with connected(Connection(f"127.0.0.1:{port}", 3, index, 10, timeout_s)):
        assert meet("numbers", index * 10) == [0, 10, 20]
        assert of_first("first", index) == 0
        assert process_index() == index
        if case == "late":
            if index == 2:
                time.sleep(8)
            else:
                meet("the save")
        elif case == "failing":
            if index == 1:
                raise OSError("no such disk")
            meet("the save")
        elif case == "other packages":
            packages = {"jax": "1.0" if index < 2 else "2.0", "orbax-checkpoint": "1.0"}
            check_processes("settings", {"packages": packages})
        elif case == "damaged":
            try:
                agreed("read", read)
            except DamagedError as error:
                meet("fall back")
                print(error)
        elif case == "waiting":
            client, asked = distributed.global_state.client, []
            class Counting:
                def __getattr__(self, name):
                    asked.append(name)
                    return getattr(client, name)
            distributed.global_state.client = Counting()
            time.sleep(3 * (index == 2))
            meet("the save")
            distributed.global_state.client = client
            assert len(asked) < 15, asked
        elif case == "other data":
            check_processes("data", {"data": {"rows": 7 + (index == 1)}, "tokenizer": "a"})
        print("met")
except (OSError, ValueError) as error:
    print(error, flush=True)
"""


def printed(case, seconds=60):
    """What each of three processes prints."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(port), str(index), case],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for index in range(3)
    ]
    try:
        return [process.communicate(timeout=seconds)[0].strip() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_processes_meet():
    assert printed("none") == ["met"] * 3


def test_those_that_wait_seldom_ask():
    assert printed("waiting") == ["met"] * 3


def test_a_late_process_is_named_in_time():
    begun = time.monotonic()
    first, second, _ = printed("late")
    for text in (first, second):
        assert text.endswith("processes [2] have not come to 'the save' within 3 s")
    assert time.monotonic() - begun < 60


def test_the_others_are_told_why_a_process_has_failed():
    first, second, third = printed("failing")
    assert second == "no such disk"
    assert first == third == "another process has failed: process 1: no such disk"


def test_damage_that_one_process_finds_is_damage_to_all():
    for text in printed("damaged"):
        assert text == "process 1: DamagedError: half a file\nmet"


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("other packages", "same settings: packages.jax is '1.0' at process 0 and '2.0' at 2. "),
        ("other data", "same data: data.rows is 7 at process 0 and 8 at 1. "),
    ],
)
def test_processes_with_other_packages_or_data_are_named(case, message):
    for text in printed(case):
        assert message in text


def test_a_process_alone_meets_nobody():
    assert meet("anywhere", {"a": 1}) == [{"a": 1}]
    assert of_first("anywhere", 3) == 3
    assert distributed.is_first()
    assert distributed.process_count() == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"process_count": 2}, "--process_count and --process_index need --coordinator"),
        ({"process_index": 0}, "--process_count and --process_index need --coordinator"),
        ({"coordinator": "here"}, "--coordinator must be HOST:PORT, got 'here'"),
        ({"coordinator": "here:port"}, "--coordinator must be HOST:PORT"),
        ({"coordinator": "here:1"}, "--coordinator needs --process_count of at least 1, got 0"),
        ({"coordinator": "here:1", "process_count": 2}, "--process_index must be in 0..1, got -1"),
        (
            {"coordinator": "here:1", "process_count": 2, "process_index": 2},
            "--process_index must be in 0..1, got 2",
        ),
        ({"heartbeat_s": 0}, "--heartbeat_s must be at least 1, got 0"),
        ({"timeout_s": 0}, "--timeout_s must be at least 1, got 0"),
    ],
)
def test_connections_that_mean_nothing_are_refused(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Connection(**fields)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--distributed", "--process_index", "0"], "give one or the others"),
        (["--process_index", "0"], "need --coordinator HOST:PORT"),
    ],
)
def test_flags_are_refused_before_anything_is_read(flags, message, capsys):
    assert main(["train", "--gin_file", "nowhere.gin", *flags]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"SLURM_NTASKS": "4"}, False),  # a shell in an allocation is no task
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "n[1-4]"}, True),
        ({"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "n1"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"MEGASCALE_NUM_SLICES": "2"}, True),
    ],
)
def test_jobs_of_several_processes_are_recognised(monkeypatch, environment, expected):
    for name in ("SLURM_NTASKS", "SLURM_STEP_NODELIST", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("TPU_WORKER_HOSTNAMES", "MEGASCALE_NUM_SLICES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_cluster() is expected


@pytest.mark.parametrize(
    "arguments",
    [
        ["eval", "run"],
        ["predict", "run", "rows.csv", "--out", "out"],
        ["export", "run", "out"],
        ["generate", "model", "The"],
        ["embed", "model", "texts.txt", "--out", "out"],
    ],
)
def test_what_runs_in_one_process_is_refused_in_several(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.gin").touch()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "xglm"}')
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    assert main(arguments) == 2
    assert "only `xformer train` runs in several processes" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
