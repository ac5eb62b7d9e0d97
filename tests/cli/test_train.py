"""What `xformer train` says about a finished run, and how it ends."""

import argparse
import contextlib
import json
import os
import signal

from xformer import distributed
from xformer.cli import train
from xformer.cli.train import summary
from xformer.training.runlog import RunLog


def test_summary_has_perplexities_samples_and_places(tmp_path):
    with RunLog(tmp_path, total_steps=2, plain=True) as log:
        log.validation({"step": 0, "loss": 8.0, "perplexity": 2981.0, "unigram_perplexity": 400.0})
        log.validation({"step": 2, "loss": 4.6, "perplexity": 100.0, "unigram_perplexity": 400.0})
        log.samples(2, [{"prompt": "The", "continuation": " value\n\n\n  is bad"}])
    assert summary(str(tmp_path)) == [
        "",
        "validation perplexity: 2,981.0 before, 100.0 after",
        "unigram baseline:      400.0 (4.0 x ours)",
        "",
        "[The] value",
        "  is bad",
        "",
        f"run folder: {tmp_path}",
        f"report:     {tmp_path / 'report.html'}",
        f"loss curve: {tmp_path / 'loss.png'}",
    ]


def test_summary_without_validation_says_where_things_are(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        json.dumps({"kind": "event", "event": "finished", "step": 2, "time": 0}) + "\n"
    )
    assert summary(str(tmp_path))[2] == f"run folder: {tmp_path}"


def test_a_signal_does_not_kill_a_finished_process_that_waits_for_the_others(monkeypatch):
    @contextlib.contextmanager
    def connected(_):
        yield
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(distributed, "connected", connected)
    monkeypatch.setattr(train, "connection", lambda _: None)
    monkeypatch.setattr(train, "_train", lambda args, notice: 0)
    killed = []
    before = signal.signal(signal.SIGTERM, lambda *_: killed.append("here"))
    try:
        assert train.run(argparse.Namespace()) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not killed
