"""The run log: what is on disk after kills, resumes and errors, and what a person sees."""

import json
import os
import pty
import re
import resource
import struct
import subprocess
import sys
import time
import types

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from xformer.training.runlog import RunLog, read_metrics, read_samples


def train_record(step, **changes):
    return {"step": step, "loss": 1.0 / step, "tokens_per_s": 1000.0, **changes}


def lines(folder, name="metrics.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def events(folder):
    found = []
    for path in sorted((folder / "tensorboard").iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("Q", content[:8])
            found.append(Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    return found


def scalars(folder, tag):
    return [
        (event.step, value.simple_value)
        for event in events(folder)
        for value in event.summary.value
        if value.tag == tag
    ]


def test_every_record_is_one_json_line_on_disk_at_once(tmp_path):
    log = RunLog(tmp_path / "deep" / "run", 10, plain=True)
    folder = tmp_path / "deep" / "run"
    log.event("started", 0, devices=8)
    log.train(train_record(5))
    log.validation({"step": 5, "loss": 2.0, "perplexity": 7.4})
    written = lines(folder)  # before close: a kill loses nothing
    log.close()
    assert [one["kind"] for one in written] == ["event", "train", "validation"]
    assert written[0] | {"time": 0} == {
        "kind": "event", "event": "started", "step": 0, "devices": 8, "time": 0,
    }  # fmt: skip
    assert written[1]["loss"] == 0.2 and written[2]["perplexity"] == 7.4
    assert all(one["time"] > 1.7e9 for one in written)


def test_losses_are_written_bit_for_bit(tmp_path):
    losses = np.random.default_rng(0).normal(size=20).astype(np.float32)
    with RunLog(tmp_path, 20, plain=True) as log:
        for step, loss in enumerate(losses, 1):
            log.train({"step": np.int32(step), "loss": jnp.asarray(loss) if step % 2 else loss})
    read = [record["loss"] for record in read_metrics(tmp_path)]
    assert np.asarray(read, np.float32).tobytes() == losses.tobytes()


@pytest.mark.parametrize("value", [float("nan"), np.float32("inf"), jnp.float32("-inf")])
def test_not_finite_is_null_and_said(tmp_path, capsys, value):
    with RunLog(tmp_path, 2, plain=True) as log:
        log.train({"step": 1, "loss": value})
    (record,) = json.loads(
        "[" + (tmp_path / "metrics.jsonl").read_text() + "]", parse_constant=pytest.fail
    )
    assert record["loss"] is None
    assert "loss is not finite" in capsys.readouterr().out
    assert scalars(tmp_path, "train/loss") == []


@pytest.mark.parametrize(
    "torn", ['{"kind": "train", "st', '{"kind"', "{", '{"kind": "train", "step": 2}']
)
def test_torn_last_line_is_repaired(tmp_path, torn):
    with RunLog(tmp_path, 9, plain=True) as log:
        log.train(train_record(1))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(torn)
    assert [one["step"] for one in read_metrics(tmp_path)] == [1]
    with RunLog(tmp_path, 9, plain=True) as log:
        log.train(train_record(3))
    whole = [2] if torn.endswith("}") else []
    assert [one["step"] for one in lines(tmp_path)] == [1, *whole, 3]


def test_torn_only_line_is_repaired(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"kind"')
    with RunLog(tmp_path, 9, plain=True) as log:
        log.event("started", 0)
    assert [one["event"] for one in lines(tmp_path)] == ["started"]


def test_read_metrics_takes_the_last_record_of_a_step(tmp_path):
    with RunLog(tmp_path, 9, plain=True) as log:
        log.event("started", 0)
        for step in (1, 2, 3):
            log.train(train_record(step, loss=1.0))
        log.validation({"step": 3, "loss": 5.0})
    with RunLog(tmp_path, 9, plain=True) as log:
        log.event("resumed", 1)
        log.event("checkpoint", 1)
        log.train(train_record(2, loss=2.0))
        log.validation({"step": 2, "loss": 6.0})
    found = [(one["kind"], one["step"], one.get("loss")) for one in read_metrics(tmp_path)]
    assert found == [
        ("event", 0, None),
        ("train", 1, 1.0),
        ("event", 1, None),
        ("event", 1, None),
        ("train", 2, 2.0),
        ("validation", 2, 6.0),
        ("train", 3, 1.0),
        ("validation", 3, 5.0),
    ]


def test_read_metrics_names_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no run folder: it holds no metrics.jsonl"):
        read_metrics(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 1}\n[1]\n{}\n')
    with pytest.raises(ValueError, match="metrics.jsonl:2 is no record"):
        read_metrics(tmp_path)


def test_tensorboard_has_the_numbers(tmp_path):
    with RunLog(tmp_path, 9, plain=True) as log:
        log.train(train_record(4))
        log.validation({"step": 4, "loss": 3.0})
        log.samples(4, [{"prompt": "once", "continuation": " upon"}])
    assert scalars(tmp_path, "train/loss") == [(4, 0.25)]
    assert scalars(tmp_path, "train/tokens_per_s") == [(4, 1000.0)]
    assert scalars(tmp_path, "validation/loss") == [(4, 3.0)]
    assert scalars(tmp_path, "train/step") == scalars(tmp_path, "train/time") == []
    text = [value.tensor.string_val for one in events(tmp_path) for value in one.summary.value]
    assert [b"**once** upon"] in text


def test_resumed_run_is_drawn_once_and_whole(tmp_path):
    with RunLog(tmp_path, 9, plain=True) as log:
        log.event("started", 0)
        log.validation({"step": 0, "loss": 9.0})
        log.train(train_record(2))
        log.train(train_record(4))
        log.validation({"step": 4, "loss": 4.5})
    with RunLog(tmp_path, 9, plain=True) as log:
        log.event("resumed", 3)
        log.train(train_record(4, loss=0.5))
        log.train(train_record(6))
        log.validation({"step": 6, "loss": 4.0})
    assert scalars(tmp_path, "train/loss") == [(2, 0.5), (4, 0.5), (6, pytest.approx(1 / 6))]
    assert scalars(tmp_path, "validation/loss") == [(0, 9.0), (4, 4.5), (6, 4.0)]
    with RunLog(tmp_path, 9, plain=True) as log:  # nothing to repeat but an evaluation
        log.validation({"step": 9, "loss": 3.0})
    assert [step for step, _ in scalars(tmp_path, "validation/loss")] == [0, 4, 6, 9]
    assert [step for step, _ in scalars(tmp_path, "train/loss")] == [2, 4, 6]


def test_samples_have_a_file(tmp_path, capsys):
    samples = [
        {"prompt": "a\n", "continuation": "[red]b\x1b[31m"},
        {"prompt": "", "continuation": ""},
    ]
    with RunLog(tmp_path, 9, plain=True) as log:
        log.samples(7, samples)
    found = lines(tmp_path, "samples.jsonl")
    assert [(one["step"], one["prompt"], one["continuation"]) for one in found] == [
        (7, "a\n", "[red]b\x1b[31m"),
        (7, "", ""),
    ]
    assert "sample: a  -> [red]b [31m" in capsys.readouterr().out


def test_plain_console_prints_a_line_a_record(tmp_path, capsys):
    with RunLog(tmp_path, 1000, plain=True) as log:
        log.event("resumed", 100, checkpoint="x")
        log.train(train_record(110, loss=4.0, perplexity=54.6, learning_rate=3e-4))
        log.validation({"step": 110, "loss": 2.0, "unigram_perplexity": 1234.5})
    assert capsys.readouterr().out.splitlines() == [
        "resumed at step 100  checkpoint x",
        "step 110/1,000  loss 4.0000  perplexity 54.60  learning rate 3.00e-04  1,000 tokens/s",
        "validation at step 110  loss 2.0000  unigram perplexity 1,234.50",
    ]


def test_time_left_counts_this_process_alone(tmp_path, capsys, monkeypatch):
    now = [0.0]
    clock = types.SimpleNamespace(monotonic=lambda: now[0], time=time.time, time_ns=time.time_ns)
    monkeypatch.setattr("xformer.training.runlog.time", clock)
    with RunLog(tmp_path, 1000, plain=True) as log:
        log.train(train_record(500))  # resumed: 500 steps took this process no time
        now[0] = 50.0
        log.train(train_record(510))
    assert [line.endswith("  40:50 left") for line in capsys.readouterr().out.splitlines()] == [
        False,
        True,
    ]


def test_terminal_gets_a_bar_with_lines_above(tmp_path):
    code = (
        "import sys\nfrom xformer.training.runlog import RunLog\n"
        "with RunLog(sys.argv[1], 200) as log:\n"
        "    log.event('started', 0)\n"
        "    log.train({'step': 50, 'loss': 4.25, 'tokens_per_s': 1234.0})\n"
        "    log.validation({'step': 50, 'loss': 3.5})\n"
        "    log.samples(50, [{'prompt': '[red]', 'continuation': 'x'}])\n"
    )
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": "120", "TERM": "xterm"}
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=theirs, env=environment
    ) as process:
        os.close(theirs)
        seen = b""
        while True:
            try:
                seen += os.read(ours, 1000)
            except OSError:  # what Linux says at the end
                break
        os.close(ours)
    assert process.returncode == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())
    assert re.search(r"started at step 0\s*\r?\n", text)
    assert re.search(r"50/200 .* 25% loss 4.2500  1,234 tokens/s", text)
    assert "validation at step 50  loss 3.5000" in text
    assert "sample: [red] -> x" in text


def test_full_disk_is_an_error_that_names_the_key(tmp_path):
    log = RunLog(tmp_path, 9, plain=True)
    log.train(train_record(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (tmp_path / "metrics.jsonl").stat().st_size
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, hard))
        with pytest.raises(
            OSError, match="cannot write .*File too large; free space, or set Run.folder"
        ):
            log.train(train_record(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    log.close()
    assert [one["step"] for one in read_metrics(tmp_path)][0] == 1


def test_folder_that_cannot_be_made_is_an_error_that_names_the_key(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="cannot write the run's records in .*Run.folder"):
        RunLog(tmp_path / "file" / "run", 9, plain=True)


def test_import_loads_neither_rich_nor_tensorboard_nor_jax():
    code = (
        "import sys, xformer.training.runlog\n"
        "print([one for one in ('rich', 'tensorboardX', 'jax', 'numpy') if one in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_samples_read_back_are_the_newest_one_for_each_prompt(tmp_path):
    assert read_samples(tmp_path) == []
    with RunLog(tmp_path, total_steps=4, plain=True) as log:
        log.samples(2, [{"prompt": "a", "continuation": "old"}])
        log.samples(4, [{"prompt": "a", "continuation": "1"}, {"prompt": "b", "continuation": "2"}])
        log.samples(4, [{"prompt": "a", "continuation": "1"}, {"prompt": "b", "continuation": "2"}])
    with (tmp_path / "samples.jsonl").open("a") as file:
        file.write('{"torn')
    read = [(one["step"], one["prompt"], one["continuation"]) for one in read_samples(tmp_path)]
    assert read == [(4, "a", "1"), (4, "b", "2")]
