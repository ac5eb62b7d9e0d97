"""The loop: what is logged, when it stops, what a second call does with an earlier one."""

import asyncio
import dataclasses
import json
import os
import shutil
import signal
import threading

import numpy as np
import pytest
from orbax.checkpoint._src.serialization import jax_array_handlers

from xformer import partitioning
from xformer.data.pipeline import PreparedData, TextData
from xformer.layers.execution import Execution
from xformer.layers.heads import Base
from xformer.optim import AdamW, Constant, Cosine
from xformer.partitioning import MeshConfig
from xformer.training import loop
from xformer.training.checkpoints import CheckpointError, CheckpointStore
from xformer.training.config import Checkpoints
from xformer.training.evaluation import Scorer
from xformer.training.folder import RunFolder
from xformer.training.loop import NonFiniteError, train
from xformer.training.runlog import RunLog, read_metrics
from xformer.training.signals import PreemptedError, StopNotice
from xformer.training.state import blueprint, create_state

FRACTIONS = ("input_wait_fraction", "checkpoint_fraction", "log_fraction")


def records(folder, kind):
    return [record for record in read_metrics(folder) if record["kind"] == kind]


def events(folder):
    return [record["event"] for record in records(folder, "event")]


def status(folder):
    return json.loads((folder / "run.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Where one uninterrupted run is, made by the first test that asks."""
    return tmp_path_factory.mktemp("finished")


@pytest.fixture
def overflowing(make_run):
    """A model none of whose steps is finite."""
    return dataclasses.replace(make_run().model, init_std=1e30)


@pytest.fixture
def reference(make_run, finished, curve):
    """The losses of an uninterrupted run."""
    run = make_run(folder=str(finished / "run"))
    if not (finished / "run").exists():
        train(run, plain=True)
    return curve(finished / "run")


def test_a_run_leaves_its_records(make_run, tmp_path):
    prompts = ("The", "def f(")
    run = make_run(sample_prompts=prompts, sample_tokens=4)
    outcome = train(run, {"config.gin": "text"}, plain=True)
    folder = tmp_path / "run"
    assert (outcome.status, outcome.step, outcome.already_finished) == ("finished", 12, False)
    steps = records(folder, "train")
    assert [record["step"] for record in steps] == list(range(1, 13))
    assert all(0 <= record[key] < 1 for record in steps for key in FRACTIONS)
    assert steps[-1]["loss"] < steps[0]["loss"] and steps[-1]["skipped"] == 0
    tokens = [record["tokens"] for record in steps]
    assert tokens == sorted(set(tokens)) and tokens[-1] <= 12 * 8 * 32
    validation = records(folder, "validation")
    assert [record["step"] for record in validation] == [0, 5, 10, 12]
    assert validation[-1]["loss"] < validation[0]["loss"]
    assert validation[0]["unigram_perplexity"] > 1
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert [sample["prompt"] for sample in samples] == list(prompts)
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["seed"] == 0 and provenance["packages"]["jax"]
    assert (folder / "config.gin").read_text() == "text"
    names = ("report.html", "loss.png", "tensorboard", "tokenizer", "checkpoints")
    assert all((folder / name).exists() for name in names)
    assert sorted(os.listdir(folder / "checkpoints")) == ["10", "12"]


def test_a_finished_run_is_left_alone(make_run, reference, finished):
    before = (finished / "run" / "metrics.jsonl").read_bytes()
    outcome = train(make_run(folder=str(finished / "run")), plain=True)
    assert outcome.already_finished and outcome.step == 12
    assert (finished / "run" / "metrics.jsonl").read_bytes() == before


def test_the_baseline_is_that_of_the_files_at_the_start(make_run, corpus, tmp_path, monkeypatch):
    prepared = tmp_path / "train"
    shutil.copytree(corpus / "train", prepared)
    run = make_run(train_data=PreparedData(str(prepared)), eval_every_steps=2, steps=4)
    evaluate = Scorer.__call__

    def lose(scorer, *args):
        (prepared / "unigram_counts.npy").unlink(missing_ok=True)
        return evaluate(scorer, *args)

    monkeypatch.setattr(Scorer, "__call__", lose)
    assert train(run, plain=True).status == "finished"
    baselines = [record["unigram_perplexity"] for record in records(tmp_path / "run", "validation")]
    assert len(baselines) == 3 and len(set(baselines)) == 1 and baselines[0] > 1


def test_the_same_run_twice_gives_the_same_bits(make_run, reference, tmp_path, curve):
    train(make_run(), plain=True)
    assert curve(tmp_path / "run") == reference


def test_how_often_it_logs_and_evaluates_changes_nothing(make_run, reference, tmp_path, curve):
    rare = make_run(log_every_steps=4, eval_every_steps=0, checkpoints=Checkpoints(100))
    train(rare, plain=True)
    losses = curve(tmp_path / "run")
    assert set(losses) == {("validation", 0), ("validation", 12)} | {
        ("train", step) for step in (1, 4, 8, 12)
    }
    assert losses.items() <= reference.items()


@pytest.mark.parametrize(
    "change", [{"execution": Execution(layers="scan")}, {"execution": Execution(remat="full")}]
)
def test_how_it_is_computed_hardly_changes_the_losses(make_run, reference, tmp_path, curve, change):
    train(make_run(**change), plain=True)
    losses = curve(tmp_path / "run")
    ours, theirs = (
        np.array([float.fromhex(c[key]) for key in sorted(reference)]) for c in (losses, reference)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def stop_at(folder, step, number=signal.SIGTERM):
    """Sends a signal to this process once a step is in the log."""

    def watch():
        while not stopped.wait(0.002):
            log = folder / "metrics.jsonl"
            if log.exists() and f'"train", "step": {step},' in log.read_text():
                os.kill(os.getpid(), number)
                return

    stopped = threading.Event()
    thread = threading.Thread(target=watch)
    thread.start()
    return lambda: (stopped.set(), thread.join())


def test_sigterm_saves_and_the_next_call_goes_on(make_run, reference, tmp_path, curve):
    folder = tmp_path / "run"
    run = make_run()
    for step in (3, 7):
        finish = stop_at(folder, step)
        outcome = train(run, plain=True)
        finish()
        assert outcome.status == "preempted" and outcome.step >= step
        assert status(folder)["status"] == "preempted" and status(folder)["step"] == outcome.step
        assert str(outcome.step) in os.listdir(folder / "checkpoints")
    assert train(run, plain=True).status == "finished"
    assert curve(folder) == reference
    assert events(folder).count("resumed") == 2


def test_resuming_on_another_mesh_keeps_batches_and_losses(make_run, reference, tmp_path, curve):
    folder = tmp_path / "run"
    finish = stop_at(folder, 4)
    train(make_run(mesh=MeshConfig(data=4, fsdp=2)), plain=True)
    finish()
    train(make_run(mesh=MeshConfig(data=2, fsdp=2, tensor=2)), plain=True)
    losses = curve(folder)
    keys = sorted(reference)
    ours, theirs = (np.array([float.fromhex(c[key]) for key in keys]) for c in (losses, reference))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    tokens = [record["tokens"] for record in records(folder, "train")]
    assert tokens == sorted(set(tokens))


def test_nonfinite_steps_change_nothing_and_end_the_run(make_run, overflowing, tmp_path):
    folder = tmp_path / "run"
    run = make_run(model=overflowing, nonfinite_limit=3)
    with pytest.raises(NonFiniteError, match=r"3 steps in a row.*learning_rate"):
        train(run, plain=True)
    assert status(folder)["status"] == "failed"
    bad = [record for record in records(folder, "event") if record["event"] == "nonfinite"]
    assert [record["step"] for record in bad] == [1, 2, 3]
    assert [record["data_state"] for record in bad] == [{"batch": 0}, {"batch": 1}, {"batch": 2}]
    assert not [name for name in os.listdir(folder / "checkpoints") if name.isdigit()]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"seed": 1}, "seed was 0 and is now 1"),
        ({"batch_size": 16}, "batch_size was 8 and is now 16"),
        ({"optimizer": AdamW(Cosine(2e-2, warmup_steps=2))}, "learning_rate.peak was 0.01"),
        ({"steps": 24}, "steps was 12 and is now 24"),
    ],
)
def test_another_run_does_not_go_on_in_the_same_folder(
    make_run, reference, finished, change, message
):
    with pytest.raises(ValueError, match=message):
        train(make_run(folder=str(finished / "run"), **change), plain=True)


def test_steps_may_be_added_where_the_rate_does_not_depend_on_them(make_run, tmp_path):
    run = make_run(optimizer=AdamW(Constant(1e-2)), steps=4)
    finish = stop_at(tmp_path / "run", 2)
    train(run, plain=True)
    finish()
    assert train(dataclasses.replace(run, steps=6), plain=True).step == 6


def test_a_finished_run_may_be_extended_too(make_run, tmp_path):
    run = make_run(optimizer=AdamW(1e-2), steps=4)
    train(run, plain=True)
    outcome = train(dataclasses.replace(run, steps=6), plain=True)
    assert outcome.step == 6 and not outcome.already_finished
    assert "resumed" in events(tmp_path / "run")


def test_a_missing_report_of_a_finished_run_is_written(make_run, reference, finished):
    report = finished / "run" / "report.html"
    report.unlink()
    assert train(make_run(folder=str(finished / "run")), plain=True).already_finished
    assert report.exists()


def test_other_data_is_refused_before_there_is_a_checkpoint(
    make_run, overflowing, corpus, tmp_path
):
    folder = tmp_path / "run"
    with RunFolder(folder):
        pass
    with pytest.raises(NonFiniteError):
        train(make_run(model=overflowing), plain=True)
    assert status(folder)["step"] == 0
    swapped = {
        "train_data": PreparedData(str(corpus / "validation")),
        "validation_data": PreparedData(str(corpus / "train")),
    }
    for key in swapped:
        other = make_run(model=overflowing, **{key: swapped[key]})
        named = {"train_data": "data", "validation_data": "validation"}[key]
        with pytest.raises(ValueError, match=rf"with other settings: .*{named}\."):
            train(other, plain=True)


def test_what_failed_before_its_first_step_begins_again_with_other_settings(
    make_run, tmp_path, monkeypatch
):
    class Untraceable:
        traces = 0

        def __call__(self, *_):
            raise ValueError("the settings do not go together")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "compile_train_step", lambda run, plan: Untraceable())
        with pytest.raises(ValueError, match="do not go together"):
            train(make_run(seed=1, steps=3), plain=True)
        assert status(tmp_path / "run")["status"] == "failed"
    train(make_run(seed=2, steps=3), plain=True)
    train(make_run(seed=2, steps=3, folder=str(tmp_path / "fresh")), plain=True)
    found, fresh = (
        [(one["step"], one["loss"]) for one in records(tmp_path / name, "validation")]
        for name in ("run", "fresh")
    )
    assert found == fresh and found[0][0] == 0


def test_what_was_stopped_before_its_first_step_begins_again_with_other_settings(
    make_run, tmp_path
):
    notice = StopNotice()
    notice.received = "SIGTERM"
    outcome = train(make_run(seed=1, steps=3), plain=True, notice=notice)
    assert (outcome.status, outcome.step) == ("preempted", 0)
    assert status(tmp_path / "run")["status"] == "preempted"
    assert not os.listdir(tmp_path / "run" / "checkpoints")
    assert train(make_run(seed=2, steps=3), plain=True).status == "finished"


def test_another_dtype_is_refused_on_resume(make_run, reference, finished):
    run = make_run(folder=str(finished / "run"), execution=Execution(dtype="bfloat16"))
    with pytest.raises(ValueError, match="dtype was 'float32' and is now 'bfloat16'"):
        train(run, plain=True)


def test_a_failed_last_write_is_a_failed_run(make_run, tmp_path, monkeypatch):
    def fail(store):
        raise CheckpointError("the disk went away")

    monkeypatch.setattr(CheckpointStore, "wait", fail)
    with pytest.raises(CheckpointError, match="went away"):
        train(make_run(steps=3), plain=True)
    assert status(tmp_path / "run")["status"] == "failed"
    assert events(tmp_path / "run")[-1] == "failed"


def test_steps_go_on_while_a_checkpoint_is_written(make_run, tmp_path, monkeypatch):
    order, saved, begun, released = [], [], threading.Event(), threading.Event()

    async def write_late(*args, **kwargs):
        if not begun.is_set():
            order.append("the first write begins")
            begun.set()
            await asyncio.to_thread(released.wait, 60)  # steps that waited for it would come after
            order.append("it goes on")
        return await write(*args, **kwargs)

    def log(log, record):
        write_record(log, record)
        if 5 < record["step"] <= 8:
            begun.wait(60)
            order.append(record["step"])
            saved.append(status(tmp_path / "run")["step"])
        if record["step"] == 8:
            released.set()

    write, write_record = jax_array_handlers._async_serialize_replica_slices, RunLog.train
    monkeypatch.setattr(jax_array_handlers, "_async_serialize_replica_slices", write_late)
    monkeypatch.setattr(RunLog, "train", log)
    run = make_run(steps=10, validation_data=None, checkpoints=Checkpoints(every_steps=5))
    train(run, plain=True)
    assert order == ["the first write begins", 6, 7, 8, "it goes on"]
    assert saved == [0, 0, 0]
    # What was written so late is the state of step 5, although those after it reuse its memory.
    shutil.rmtree(run.checkpoint_folder / "10")
    with CheckpointStore(run.checkpoint_folder) as store:
        restored = store.restore(run, blueprint(run, partitioning.make_mesh(run.mesh)))
    assert restored.step == 5 and not restored.quarantined


def test_a_signal_is_answered_at_once_but_not_twice(capfd):
    with StopNotice() as notice:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert notice.received == "SIGTERM"
    answer = capfd.readouterr().err
    assert answer.count("SIGTERM: stopping before the next step; Ctrl-C from now on") == 1


def test_an_evaluation_is_given_up_for_a_signal(make_run):
    run = make_run()
    plan = blueprint(run, partitioning.make_mesh(run.mesh))
    state = create_state(plan, 0)
    notice = StopNotice()
    notice.received = "SIGTERM"
    with pytest.raises(PreemptedError):
        Scorer(run, plan, run.validation_data)(state.params, notice)


def test_a_damaged_status_is_named(make_run, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json is damaged .*Run\.folder"):
        train(make_run(), plain=True)


def test_the_status_names_the_step_that_is_saved_not_the_newest(make_run, tmp_path, monkeypatch):
    def fail(store, step, *rest):
        store.wait()
        if step == 4:
            raise CheckpointError("the disk went away")
        save(store, step, *rest)

    save = CheckpointStore.save
    monkeypatch.setattr(CheckpointStore, "save", fail)
    with pytest.raises(CheckpointError, match="went away"):
        train(make_run(checkpoints=Checkpoints(every_steps=2)), plain=True)
    assert status(tmp_path / "run")["status"] == "failed"
    assert status(tmp_path / "run")["step"] == 2
    RunFolder(tmp_path / "run").write_status("running", saved_step=2)
    assert RunFolder(tmp_path / "run").read_status()["step"] == 2


def test_every_start_is_in_the_provenance(make_run, tmp_path):
    run = make_run(optimizer=AdamW(1e-2), steps=2)
    for steps in (2, 3, 4):
        train(dataclasses.replace(run, steps=steps), plain=True)
    provenance = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert [len(provenance["earlier"]), provenance["earlier"][0]["seed"]] == [2, 0]


def test_other_data_is_refused_on_resume(make_run, corpus, tmp_path):
    finish = stop_at(tmp_path / "run", 2)
    train(make_run(), plain=True)
    finish()
    other = make_run(train_data=PreparedData(str(corpus / "validation")))
    with pytest.raises(ValueError, match="holds a run with other settings: data"):
        train(other, plain=True)


def test_a_lost_checkpoint_folder_is_not_a_fresh_start(make_run, tmp_path):
    finish = stop_at(tmp_path / "run", 2)
    train(make_run(), plain=True)
    finish()
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        path.rename(tmp_path / path.name)
    aside = tmp_path / "run" / "quarantine"
    with pytest.raises(CheckpointError, match=f"holds no checkpoint.*see {aside}, if.*Run.folder"):
        train(make_run(), plain=True)
    there = Checkpoints(folder=str(tmp_path / "disk"))
    aside = tmp_path / "disk" / "quarantine"
    with pytest.raises(CheckpointError, match=f"{tmp_path}/disk holds no checkpoint.*see {aside},"):
        train(make_run(checkpoints=there), plain=True)


def test_the_run_lock_keeps_a_second_process_out(make_run, tmp_path):
    with RunFolder(tmp_path / "run"):
        with pytest.raises(ValueError, match="another process is training in .*Run.folder"):
            train(make_run(), plain=True)
    train(make_run(steps=3), plain=True)


def test_an_unusable_folder_is_refused_before_training(make_run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Not a directory; .*set Run.folder"):
        train(make_run(folder=str(tmp_path / "file" / "run")), plain=True)


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(make_run, tmp_path):
    run = make_run()
    small = dataclasses.replace(run.model, vocab_size=100)
    with pytest.raises(ValueError, match=r"XGLMConfig.vocab_size=100; the model needs"):
        train(dataclasses.replace(run, model=small), plain=True)
    assert not (tmp_path / "run").exists()


def test_training_on_raw_text_resumes_exactly(make_run, corpus, tmp_path, curve):
    tokenizer = str(corpus / "train" / "tokenizer")
    data = TextData((str(corpus / "train.jsonl"),), tokenizer, 32)
    run = make_run(train_data=data, validation_data=None)
    train(dataclasses.replace(run, folder=str(tmp_path / "whole")), plain=True)
    finish = stop_at(tmp_path / "run", 5)
    train(run, plain=True)
    finish()
    train(run, plain=True)
    assert curve(tmp_path / "run") == curve(tmp_path / "whole")


def test_a_head_that_the_objective_cannot_score_is_refused(make_run):
    with pytest.raises(ValueError, match=r"Run.objective NextToken needs Run.head .*CausalLM"):
        make_run(head=Base())
