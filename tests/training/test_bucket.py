"""Checkpoints and corpora in a bucket, which a server on this machine stands for."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from xformer.data.mixture import Mixture
from xformer.data.pipeline import PreparedData, open_batches
from xformer.data.prepare import PrepareOptions, prepare
from xformer.training.checkpoints import CheckpointStore, complete_steps
from xformer.training.config import Checkpoints
from xformer.training.runlog import read_metrics

TOKENIZER = Path(__file__).parents[1] / "tokenization" / "fixtures" / "xglm"
SERVER = """
import contextlib, sys, threading, time
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects

# Four things that Google's servers do, and this one does not: they name the version of what they
# send, send the last bytes of an object, move objects within a bucket, and serve several clients at
# once.
send = objects.download
one_move = threading.Lock()  # what it notes of its objects is not made for several threads

def send_named(request, response, storage, *args, **kwargs):
    place = request.params["bucket_name"], request.params["object_id"]
    wanted = request.get_header("range", "")
    if wanted.startswith("bytes=-"):
        with contextlib.suppress(NotFound):
            begin = max(0, len(storage.get_file(*place)) + int(wanted.removeprefix("bytes=")))
            request._request_handler.headers.replace_header("range", f"bytes={begin}-")
    send(request, response, storage, *args, **kwargs)
    if response.status < 300:
        response["x-goog-generation"] = storage.get_file_obj(*place)["generation"]

def move(request, response, storage, *args, **kwargs):
    request.params["dest_bucket_name"] = request.params["bucket_name"]
    with one_move:
        objects.copy(request, response, storage, *args, **kwargs)
        if response.status < 300:
            storage.delete_file(request.params["bucket_name"], request.params["object_id"])

objects.download = send_named
from gcp_storage_emulator import server

server.server.HTTPServer = server.server.ThreadingHTTPServer
server.server.HTTPServer.request_queue_size = 128
place = r"/storage/v1/b/(?P<bucket_name>[-.\\w]+)/o/(?P<object_id>.*[^/]+)"
server.HANDLERS = (
    (f"^{place}/moveTo/o/(?P<dest_object_id>.*[^/]+)$", {"POST": move}),
    *server.HANDLERS,
)
server.create_server("127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket="bucket").start()
print("ready", flush=True)
time.sleep(3600)
"""
# What users of a bucket have to hand: ways to copy to it, to look at names and to damage some.
COPY = """
import sys
from pathlib import Path
from etils import epath
here, there = Path(sys.argv[1]), epath.Path(sys.argv[2])
for path in here.rglob("*"):
    if path.is_file():
        (there / path.relative_to(here).as_posix()).write_bytes(path.read_bytes())
"""
LIST = """
import fsspec, sys
for name in sorted(fsspec.filesystem("gcs").find(sys.argv[1])):
    print("gs://" + name)
"""
DAMAGE = """
import sys
from etils import epath
path = epath.Path(sys.argv[1])
content, begin = path.read_bytes(), int(sys.argv[2])
path.write_bytes(content[:begin] + b"damaged" + content[begin:][7:])
"""
CUT = """
import sys
from etils import epath
path = epath.Path(sys.argv[1])
path.write_bytes(path.read_bytes()[:-8])
"""
REMOVE = """
import sys
from etils import epath
epath.Path(sys.argv[1]).unlink()
"""
# Hashes of batches from some epoch on, or of one pass, and what else a corpus is asked for.
READ = """
import contextlib, hashlib, itertools, sys
from xformer.data.mixture import Mixture
from xformer.data.pipeline import PreparedData, open_batches, read_tokenizer
from xformer.data.unigram import read_unigram_counts
train, validation, workers = *sys.argv[1:3], int(sys.argv[3])

def tell(data, **wanted):
    with contextlib.closing(open_batches(data, batch_size=8, seed=3, **wanted)) as batches:
        digest = hashlib.sha256()
        batches.restore({"batch": 0 if "epochs" in wanted else 250})
        for batch in itertools.islice(batches, 40):
            for name, array in sorted(batch.items()):
                digest.update(name.encode() + array.tobytes())
        print(digest.hexdigest(), batches.fingerprint)

one = PreparedData(train, workers=workers)
tell(one)
tell(one, process_index=1, process_count=2)
tell(PreparedData(validation, workers=workers), epochs=1)
tell(Mixture({"a": train, "b": validation}, workers=workers))
tokenizer = read_tokenizer(one)
print(tokenizer.fingerprint(), tokenizer.name_or_path.removeprefix(train))
print(read_unigram_counts(one).sum())
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
    clients = (
        "STORAGE_EMULATOR_HOST",
        "TENSORSTORE_GCS_HTTP_URL",
        "CLOUD_STORAGE_EMULATOR_ENDPOINT",
    )
    yield dict.fromkeys(clients, address)
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


@pytest.fixture(scope="module")
def shards(corpus, tmp_path_factory):
    """The corpus in several shards, here and not yet elsewhere."""
    folder = tmp_path_factory.mktemp("shards")
    for name in ("train", "validation"):
        options = PrepareOptions(length=32, shard_bytes=3_000)
        prepare([f"{corpus / name}.jsonl"], TOKENIZER, folder / name, options=options, workers=1)
    assert len(list((folder / "train").glob("rows-*"))) > 3
    return folder


def train(run_file, *more):
    return ("-m", "xformer.cli.main", "train", "--plain", "--gin_file", str(run_file), *more)


def losses(folder):
    return {
        record["step"]: float(record["loss"]).hex()
        for record in read_metrics(folder)
        if record["kind"] == "train"
    }


STEPS = 24
SAVING = (
    f"Run.steps = {STEPS}",
    "Run.log_every_steps = 1",
    "Run.checkpoints = @Checkpoints()",
    "Checkpoints.every_steps = 6",
)


def kill_half_way(process, folder):
    """Kills a run that has taken half of its steps and has a checkpoint."""

    def is_due():
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
            is_saved = any(one.get("event") == "checkpoint" for one in read_metrics(folder))
            return is_saved and len(losses(folder)) >= STEPS // 2
        return False  # it is being written

    with process:
        reader = threading.Thread(target=process.communicate)  # a full pipe would stop the run
        reader.start()
        while process.poll() is None and not is_due():
            time.sleep(0.05)
        process.kill()
        reader.join()


def test_run_goes_on_from_a_bucket_and_past_damage(write_run_file, run, start, tmp_path):
    folders = {name: tmp_path / name for name in ("whole", "killed", "elsewhere")}
    where = {"whole": "gs://bucket/whole", "killed": "gs://bucket/other"}
    where["elsewhere"] = where["killed"]
    for name, folder in folders.items():
        write_run_file(
            tmp_path / f"{name}.gin",
            folder,
            *SAVING,
            "Checkpoints.keep = 2",
            f"Checkpoints.folder = '{where[name]}'",
        )
    run(*train(tmp_path / "whole.gin"))
    expected = losses(folders["whole"])

    kill_half_way(start(*train(tmp_path / "killed.gin")), folders["killed"])
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
    run("-c", DAMAGE, where["killed"] + "/24/record/metadata", "-7")
    for name in ("lock", "run.json", "metrics.jsonl"):
        with contextlib.suppress(FileNotFoundError):
            (folders["elsewhere"] / name).unlink()
    run(*train(tmp_path / "elsewhere.gin"))
    again = losses(folders["elsewhere"])
    assert again and again.items() <= expected.items()
    aside = run("-c", LIST, where["killed"] + "/quarantine").splitlines()
    assert any("/quarantine/24.0/" in name for name in aside)
    assert not run("-c", LIST, "gs://bucket/quarantine")
    assert "perplexity" in run("-m", "xformer.cli.main", "eval", str(folders["elsewhere"]))


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_in_a_bucket_are_those_on_the_disk(workers, shards, run):
    address = f"gs://bucket/rows{workers}"
    run("-c", COPY, str(shards), address)
    expected = run("-c", READ, f"{shards}/train", f"{shards}/validation", "0")
    found = run("-c", READ, f"{address}/train", f"{address}/validation", str(workers))
    assert found == expected and len(expected.splitlines()) == 6


def test_damage_to_a_corpus_in_a_bucket_is_named(shards, run, tmp_path):
    run("-c", COPY, str(shards), "gs://bucket/hurt")
    train, validation = (f"gs://bucket/hurt/{name}" for name in ("train", "validation"))

    def complaint(place):
        code = "import sys; from xformer.data.pipeline import PreparedData, open_batches\n"
        code += "try:\n  open_batches(PreparedData(sys.argv[1]), batch_size=1, seed=0)\n"
        code += "except (OSError, ValueError) as error:\n  print(type(error).__name__, error)"
        return run("-c", code, place)

    nothing = "must be a folder in a bucket, but there is nothing; set PreparedData.path to another"
    assert complaint("gs://nowhere/train") == f"FileNotFoundError gs://nowhere/train {nothing}\n"
    assert complaint("gs://bucket/none") == f"FileNotFoundError gs://bucket/none {nothing}\n"
    assert "gs://bucket/hurt must be a corpus that" in complaint("gs://bucket/hurt")
    run("-c", REMOVE, f"{train}/rows-00001.arrayrecord")
    assert f"ValueError {train}/rows-00001.arrayrecord is missing" in complaint(train)
    run("-c", CUT, f"{train}/rows-00000.arrayrecord")
    assert f"{train}/rows-00000.arrayrecord must have " in complaint(train)
    run("-c", DAMAGE, f"{validation}/rows-00000.arrayrecord", "100")
    assert f"OSError cannot read record 0 of {validation}/rows-00000" in complaint(validation)


def test_run_reads_a_corpus_in_a_bucket(write_run_file, shards, run, start, tmp_path):
    run("-c", COPY, str(shards), "gs://bucket/corpus")
    folders = {name: tmp_path / name for name in ("whole", "killed", "two")}
    places = {"whole": shards, "killed": "gs://bucket/corpus", "two": "gs://bucket/corpus"}
    for name, folder in folders.items():
        write_run_file(
            tmp_path / f"{name}.gin",
            folder,
            *SAVING,
            "Run.eval_every_steps = 12",
            corpus=places[name],
        )
    run(*train(tmp_path / "whole.gin"))
    expected = losses(folders["whole"])

    # Begun on the disk, a run may go on from the bucket.
    on_disk = f"--gin.train/PreparedData.path='{shards}/train'"
    kill_half_way(start(*train(tmp_path / "killed.gin", on_disk)), folders["killed"])
    assert 0 < len(losses(folders["killed"])) < len(expected)
    run(*train(tmp_path / "killed.gin", "--gin.train/PreparedData.workers=1"))
    assert losses(folders["killed"]) == expected
    scores = [
        run("-m", "xformer.cli.main", "eval", str(folders["killed"]), "--json", "--data", place)
        for place in (str(shards / "train"), "gs://bucket/corpus/train")
    ]
    assert scores[0] == scores[1] and "perplexity" in scores[0]

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = ("--coordinator", f"127.0.0.1:{free.getsockname()[1]}", "--process_count", "2")
    both = [
        start(*train(tmp_path / "two.gin", *shared, "--process_index", str(index)))
        for index in range(2)
    ]
    for process in both:
        noise = process.communicate(timeout=300)[1]
        assert process.returncode == 0, noise[-3000:]
    found = losses(folders["two"])
    early = range(1, 7)  # before what is rounded in another order has grown
    values = [[float.fromhex(one[step]) for step in early] for one in (expected, found)]
    assert values[0] == pytest.approx(values[1], rel=1e-6) and found.keys() == expected.keys()


def test_checkpoints_may_be_in_a_folder_of_their_own(make_run, tmp_path):
    run = make_run(checkpoints=Checkpoints(folder=str(tmp_path / "large" / "disk")))
    assert run.checkpoint_folder == tmp_path / "large" / "disk"
    assert make_run().checkpoint_folder == tmp_path / "run" / "checkpoints"


def test_bucket_needs_what_reads_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ModuleNotFoundError, match=r"gs://bucket/run needs gcsfs: pip install"):
        complete_steps("gs://bucket/run")
    with pytest.raises(ModuleNotFoundError, match=r"or set Checkpoints.folder to a folder that"):
        CheckpointStore("gs://bucket/run", keep=1)
    data = PreparedData("gs://bucket/rows"), Mixture({"en": "gs://bucket/rows"})
    for one, key in zip(data, ("PreparedData.path", r"Mixture.sources\['en'\]"), strict=True):
        message = f"gs://bucket/rows needs gcsfs: pip install 'xformer-jax.gcs.', or set {key} to"
        with pytest.raises(ModuleNotFoundError, match=message):
            open_batches(one, batch_size=1, seed=0)


@pytest.mark.parametrize("folder", ["", "s3://bucket/run", "http://host/run", "gs://bucket"])
def test_other_addresses_are_refused(folder):
    with pytest.raises(ValueError, match=r"Checkpoints\.folder must "):
        Checkpoints(folder=folder)
