"""Checkpoints in a bucket, which a server on this machine stands for."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import time

import pytest

from xformer.training.checkpoints import CheckpointStore, complete_steps
from xformer.training.config import Checkpoints
from xformer.training.runlog import read_metrics

SERVER = """
import sys, time
from gcp_storage_emulator.handlers import objects

# Three things that Google's servers do, and this one does not: they name the version of what they
# send, move objects within a bucket, and serve several clients at once.
send = objects.download

def send_named(request, response, storage, *args, **kwargs):
    send(request, response, storage, *args, **kwargs)
    if response.status < 300:
        place = request.params["bucket_name"], request.params["object_id"]
        response["x-goog-generation"] = storage.get_file_obj(*place)["generation"]

def move(request, response, storage, *args, **kwargs):
    request.params["dest_bucket_name"] = request.params["bucket_name"]
    objects.copy(request, response, storage, *args, **kwargs)
    if response.status < 300:
        storage.delete_file(request.params["bucket_name"], request.params["object_id"])

objects.download = send_named
from gcp_storage_emulator import server

server.server.HTTPServer = server.server.ThreadingHTTPServer
place = r"/storage/v1/b/(?P<bucket_name>[-.\\w]+)/o/(?P<object_id>.*[^/]+)"
server.HANDLERS = (
    (f"^{place}/moveTo/o/(?P<dest_object_id>.*[^/]+)$", {"POST": move}),
    *server.HANDLERS,
)
server.create_server("127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket="bucket").start()
print("ready", flush=True)
time.sleep(3600)
"""
# What users of a bucket have to hand: a look at the names, or a way to damage some.
LIST = """
import fsspec, sys
for name in sorted(fsspec.filesystem("gcs").find(sys.argv[1])):
    print("gs://" + name)
"""
DAMAGE = """
import sys
from etils import epath
path = epath.Path(sys.argv[1])
path.write_bytes(path.read_bytes()[:-7] + b"damaged")
"""


@pytest.fixture(scope="module")
def bucket():
    """The environment in which gs:// is a server here."""
    for name in ("gcsfs", "gcp_storage_emulator"):
        pytest.importorskip(name, reason="requirements/gcs.txt is not installed")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert server.stdout.readline() == "ready\n"
    address = f"http://127.0.0.1:{port}"
    yield {"STORAGE_EMULATOR_HOST": address, "TENSORSTORE_GCS_HTTP_URL": address}
    server.kill()
    server.communicate()


@pytest.fixture
def start(bucket, compilation_cache):
    """Starts a program that sees the bucket."""
    kept = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    changes = {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": compilation_cache}

    def begin(*arguments):
        return subprocess.Popen(
            [sys.executable, *arguments],
            env={**kept, **changes, **bucket},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return begin


@pytest.fixture
def run(start):
    """Runs such a program to its end."""

    def finish(*arguments, code=0):
        with start(*arguments) as process:
            printed, noise = process.communicate(timeout=300)
        assert process.returncode == code, noise[-3000:]
        return printed

    return finish


def train(run_file):
    return ("-m", "xformer.cli.main", "train", "--plain", "--gin_file", str(run_file))


def losses(folder):
    return {
        record["step"]: float(record["loss"]).hex()
        for record in read_metrics(folder)
        if record["kind"] == "train"
    }


def test_run_goes_on_from_a_bucket_and_past_damage(write_run_file, run, start, tmp_path):
    folders = {name: tmp_path / name for name in ("whole", "killed", "elsewhere")}
    where = {"whole": "gs://bucket/whole", "killed": "gs://bucket/other"}
    where["elsewhere"] = where["killed"]
    for name, folder in folders.items():
        write_run_file(
            tmp_path / f"{name}.gin",
            folder,
            "Run.steps = 24",
            "Run.log_every_steps = 1",
            "Run.checkpoints = @Checkpoints()",
            "Checkpoints.every_steps = 6",
            "Checkpoints.keep = 2",
            f"Checkpoints.folder = '{where[name]}'",
        )
    run(*train(tmp_path / "whole.gin"))
    expected = losses(folders["whole"])

    with start(*train(tmp_path / "killed.gin")) as process:
        while process.poll() is None and len(read(folders["killed"])) < len(expected) // 2:
            time.sleep(0.05)
        process.kill()
        process.communicate()
    # Another machine, with nothing of the run but its config, goes on.
    run(*train(tmp_path / "elsewhere.gin"))
    found = losses(folders["elsewhere"])
    assert 0 < len(found) < len(expected) and found.items() <= expected.items()

    names = run("-c", LIST, "gs://bucket").splitlines()
    commit = re.compile(where["killed"] + r"/(\d+)/commit_success.txt")
    steps = [int(found[1]) for name in names if (found := commit.fullmatch(name))]
    assert steps == [18, 24]
    assert not (folders["killed"] / "checkpoints").exists()

    assert where["killed"] + "/24/record/metadata" in names
    run("-c", DAMAGE, where["killed"] + "/24/record/metadata")
    for name in ("lock", "run.json", "metrics.jsonl"):
        with contextlib.suppress(FileNotFoundError):
            (folders["elsewhere"] / name).unlink()
    run(*train(tmp_path / "elsewhere.gin"))
    again = losses(folders["elsewhere"])
    assert again and again.items() <= expected.items()
    aside = run("-c", LIST, "gs://bucket/quarantine").splitlines()
    assert any("/quarantine/24.0/" in name for name in aside)
    assert "perplexity" in run("-m", "xformer.cli.main", "eval", str(folders["elsewhere"]))


def read(folder):
    """The losses of a run that is being written."""
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
        return losses(folder)
    return {}


def test_checkpoints_may_be_in_a_folder_of_their_own(make_run, tmp_path):
    run = make_run(checkpoints=Checkpoints(folder=str(tmp_path / "large" / "disk")))
    assert run.checkpoint_folder == tmp_path / "large" / "disk"
    assert make_run().checkpoint_folder == tmp_path / "run" / "checkpoints"


def test_bucket_needs_what_reads_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ModuleNotFoundError, match=r"gs://bucket/run need gcsfs: pip install"):
        complete_steps("gs://bucket/run")
    with pytest.raises(ModuleNotFoundError, match=r"or set Checkpoints.folder to a folder"):
        CheckpointStore("gs://bucket/run", keep=1)


@pytest.mark.parametrize("folder", ["", "s3://bucket/run", "http://host/run"])
def test_other_addresses_are_refused(folder):
    with pytest.raises(ValueError, match=r"Checkpoints\.folder must "):
        Checkpoints(folder=folder)
