"""The training loop: the one place where steps, data, checkpoints and records meet."""

import contextlib
import json
from dataclasses import asdict, dataclass
from typing import Any

import jax
import numpy as np

from xformer import distributed, partitioning
from xformer.data.iterator import BatchIterator
from xformer.data.pipeline import open_batches, read_tokenizer
from xformer.layers.heads import PreTraining
from xformer.metrics import perplexity
from xformer.tokenization.base import PreTrainedTokenizerBase
from xformer.training.agreement import check_processes, differences
from xformer.training.arrays import ARRAYS, arrays_text
from xformer.training.checkpoints import (
    CheckpointError,
    CheckpointStore,
    Restored,
    complete_steps,
)
from xformer.training.config import Run, describe
from xformer.training.evaluation import Scorer, unigram_baseline
from xformer.training.folder import FAILED, FINISHED, PREEMPTED, RUNNING, RunFolder
from xformer.training.provenance import commit, package_versions, provenance
from xformer.training.report import REPORT, write_report
from xformer.training.runlog import METRICS, RunLog, SilentLog, read_metrics
from xformer.training.samples import check_prompts, continue_prompts
from xformer.training.signals import PreemptedError, StopNotice
from xformer.training.start import check_start, read_start, weights_fingerprint
from xformer.training.state import (
    DROPOUT,
    Blueprint,
    TrainState,
    blueprint,
    create_state,
    own_form,
    purpose_key,
)
from xformer.training.steps import StepMetrics, compile_train_step
from xformer.training.timing import Stopwatch
from xformer.training.vocabulary import check_vocabulary


class NonFiniteError(ValueError):
    """Too many steps in a row had a loss or gradient that is not finite."""


@dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended.

    Attributes:
        status: "finished" or "preempted".
        step: Steps taken.
        already_finished: Whether there was nothing left to do.
    """

    status: str
    step: int
    already_finished: bool = False


@dataclass
class Progress:
    """Counters that a resumed run continues.

    Attributes:
        tokens: Scored tokens (or examples, as the objective counts) so far.
        skipped: Steps so far that were not finite.
        skipped_in_a_row: Such steps at the end.
    """

    tokens: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0


def train(
    run: Run,
    texts: dict[str, str] | None = None,
    *,
    plain: bool | None = None,
    notice: StopNotice | None = None,
) -> Outcome:
    """Trains, from the start or from where an earlier call was interrupted.

    Args:
        run: The run.
        texts: Files to write into the run folder, by name (the resolved config).
        plain: Whether progress is plain lines instead of a bar; None decides by the terminal.
        notice: What has been listening for signals; None begins to listen here.

    Returns:
        How it ended. A preempted run has saved its state, if it has taken a step: call again to
            go on.

    Raises:
        ValueError: bad configuration or data, before anything is computed; or too many steps that
            are not finite.
        CheckpointError: no checkpoint can be used or written.
        OSError: files that cannot be read or written.
    """
    # Before the devices are known, which takes all processes.
    settings = {"packages": package_versions(), "commit": commit(), "Run": describe(run)}
    check_processes("settings", settings)
    mesh = partitioning.make_mesh(run.mesh)
    run.execution.check_devices(mesh.devices.flat)
    plan = blueprint(run, mesh)
    tokenizer = read_tokenizer(run.train_data)
    _check_tokenizers(run, tokenizer)
    check_prompts(run, tokenizer)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(RunFolder(run.folder))
        # What failed before its first step is begun again, with other settings if need be.
        status = folder.read_status() if distributed.is_first() and _has_steps(folder) else {}
        status = distributed.of_first("read the run's status", status)
        identity = run.identity()
        if status:
            _check_same(status["identity"], identity, folder)
        if run.start is not None and not complete_steps(run.checkpoint_folder):
            check_start(run.start, run.model, tokenizer)
        if status.get("status") == FINISHED and status["step"] >= run.steps:
            if distributed.is_first() and not (folder.path / REPORT).exists():
                write_report(folder.path)  # killed between its end and the report
            return Outcome(FINISHED, status["step"], already_finished=True)
        notice = notice or stack.enter_context(StopNotice())
        batches = stack.enter_context(
            contextlib.closing(_open_training_batches(run, plan, tokenizer))
        )
        scorer = Scorer(run, plan, run.validation_data) if run.validation_data else None
        baseline = unigram_baseline(run) if run.scores_text else None
        source = {
            "data": batches.fingerprint,
            "validation": scorer.fingerprint if scorer else None,
            "tokenizer": tokenizer.fingerprint(),
        }
        check_processes("data", source)
        store = stack.enter_context(CheckpointStore(run.checkpoint_folder, run.checkpoints.keep))
        restored = store.restore(run, plan)
        if run.start is not None:  # a folder whose weights have been trained on may be gone
            known = restored.record["source"].get("start") if restored else None
            source["start"] = known or weights_fingerprint(run.start)
        if status:
            _check_same(status["source"], source, folder)
        if restored:
            _check_same(restored.record["identity"], identity, folder)
            _check_same(restored.record["source"], source, folder)
            batches.restore(restored.record["data_state"])
        elif status.get("step"):
            raise CheckpointError(
                f"{folder.path} had saved step {status['step']} but {run.checkpoint_folder} holds "
                f"no checkpoint; put one back (see {run.quarantine_folder}, if it exists), or "
                "start over with another Run.folder"
            )
        origin = provenance(run.seed, source)
        folder.write_texts({**(texts or {}), ARRAYS: arrays_text(plan)})
        folder.write_provenance(origin)
        log: RunLog | SilentLog = SilentLog()
        if distributed.is_first():
            tokenizer.save_pretrained(folder.tokenizer)
            log = RunLog(folder.path, run.steps, plain=plain)
        stack.enter_context(log)
        record = {
            "identity": identity,
            "source": source,
            "config": texts or {},
            "provenance": origin,
        }
        trainer = _Trainer(
            run, plan, folder, store, log, notice, tokenizer, batches, scorer, baseline, record
        )
        trainer.start(restored)
        return trainer.finish()


class _Trainer:
    """One call of `train`, from the first step that is left to the last."""

    def __init__(
        self,
        run: Run,
        plan: Blueprint,
        folder: RunFolder,
        store: CheckpointStore,
        log: RunLog | SilentLog,
        notice: StopNotice,
        tokenizer: PreTrainedTokenizerBase,
        batches: BatchIterator,
        scorer: Scorer | None,
        baseline: float | None,
        record: dict[str, Any],
    ) -> None:
        self.run, self.plan, self.folder, self.store = run, plan, folder, store
        self.log, self.notice, self.tokenizer = log, notice, tokenizer
        self.batches, self.scorer, self.baseline, self.record = batches, scorer, baseline, record
        self.clock = Stopwatch()
        self.progress = Progress()
        self.step = 0
        self.saved_step: int | None = None
        self.logged_step = 0
        # Of the newest step, while the next one computes: metrics, where its batch was, and what
        # has been read of each corpus of a mixture.
        self.pending: tuple[StepMetrics, dict[str, int], dict[str, Any]] | None = None
        self.validated: set[int] = set()

    def start(self, restored: Restored | None) -> None:
        """Takes over a restored state, or makes one."""
        if restored:
            self.state = restored.state
            self.step = self.saved_step = restored.step
            self.progress = Progress(**restored.record["progress"])
            for step, reason in restored.quarantined.items():
                self.log.event("quarantined", step, reason=reason)
        else:
            self.state = self._first_state()
        self.logged_step = self.step
        self._write_status(RUNNING)
        self.log.event("resumed" if restored else "started", self.step)
        records = read_metrics(self.folder.path) if distributed.is_first() else []
        validated = []
        if any(r["kind"] == "train" for r in records):  # else they may be of other settings
            validated = [r["step"] for r in records if r["kind"] == "validation"]
        self.validated = set(distributed.of_first("begin", validated))

    def _first_state(self) -> TrainState:
        """Draws the weights, but for those that a pretrained model gives."""
        run, plan = self.run, self.plan
        if run.start is None:
            return create_state(plan, run.seed)
        name = type(plan.module).__name__
        loaded = read_start(run.start, run.model, run.head, plan.own_shapes.params, name)
        drawn = sorted("/".join(path) for path in loaded.missing)
        unused = sorted(loaded.unexpected)
        self.log.event("pretrained", 0, path=run.start.path, drawn=drawn, unused=unused)
        return create_state(plan, run.seed, loaded.params)

    def finish(self) -> Outcome:
        """Runs the loop and records how it ended."""
        try:
            ending = self._run()
            self._note_commits(self.store.wait())
        except BaseException as error:
            with contextlib.suppress(OSError):  # the first error is the one to tell
                self.log.event("failed", self.step, error=f"{type(error).__name__}: {error}")
                self._write_status(FAILED, error=str(error))
            raise
        notes = {"signal": self.notice.received} if ending == PREEMPTED else {}
        self.log.event(ending, self.step, seconds=round(self.clock.elapsed, 3), **notes)
        self._write_status(ending)
        if distributed.is_first():
            write_report(self.folder.path)
        return Outcome(ending, self.step)

    def _run(self) -> str:
        """Runs the loop; a run that is told to stop saves what it has."""
        try:
            self._loop()
            self._write_samples()
        except PreemptedError:
            self._settle()
            if self.step:  # else it would tie the folder to settings that no step was taken with
                self._save()
            return PREEMPTED
        return FINISHED

    def _loop(self) -> None:
        """Takes the steps that are left, with everything that is due between them."""
        run = self.run
        train_step = compile_train_step(run, self.plan)
        key = purpose_key(run.seed, DROPOUT)
        sharding = partitioning.batch_sharding(self.plan.mesh, run.rules)
        self.notice.raise_if_any("the first step")
        self._validate()
        while self.step < run.steps:
            self.notice.raise_if_received()
            place = self.batches.state()
            with self.clock.activity("input"):
                batch = partitioning.global_batch(next(self.batches), sharding)
            sources = self.batches.sources()
            if not train_step.traces:
                with self.clock.activity("compilation"):
                    result = train_step(self.state, batch, key)
                self.clock.lap()
            else:
                result = train_step(self.state, batch, key)
            self._settle()  # of the step before, while this one computes
            self.state, self.pending = result.state, (result.metrics, place, sources)
            self.step += 1
            self._validate()
            if self.step % run.checkpoints.every_steps == 0 or self.step == run.steps:
                self._settle()
                self._save()
            with self.clock.activity("checkpoint"):
                committed = self.store.check()
            self._note_commits(committed)

    def _settle(self) -> None:
        """Waits for the newest step's metrics, counts and logs them."""
        if self.pending is None:
            return
        (metrics, place, sources), self.pending = self.pending, None
        metrics = jax.device_get(metrics)
        progress = self.progress
        progress.tokens += int(metrics.tokens)
        progress.skipped_in_a_row = 0 if metrics.finite else progress.skipped_in_a_row + 1
        progress.skipped += not metrics.finite
        if not metrics.finite:
            self.log.event(
                "nonfinite",
                self.step,
                loss=float(metrics.loss),
                gradient_norm=float(metrics.gradient_norm),
                data_state=place,
            )
        if progress.skipped_in_a_row >= self.run.nonfinite_limit:
            raise NonFiniteError(
                f"the loss or gradient was not finite in {progress.skipped_in_a_row} "
                f"steps in a row, up to step {self.step}; the weights are those from before. "
                "Lower the optimizer's learning_rate or clip_norm, or raise Run.nonfinite_limit"
            )
        due = self.step % self.run.log_every_steps == 0 or self.step == self.run.steps
        if due or self.step == 1:
            self._log_step(metrics, sources)

    def _log_step(self, metrics: StepMetrics, sources: dict[str, Any]) -> None:
        lap, steps = self.clock.lap(), self.step - self.logged_step
        self.logged_step = self.step
        values = {key: np.asarray(value).item() for key, value in asdict(metrics).items()}
        scored = self.run.objective.scored
        text = {"perplexity": perplexity(values["nll"])} if self.run.scores_text else {}
        if isinstance(self.run.head, PreTraining):
            text["next_sentence_loss"] = values["next_sentence"]
        with self.clock.activity("log"):
            self.log.train(
                {
                    "step": self.step,
                    "loss": values["loss"],
                    **text,
                    "z_loss": values["z_loss"],
                    "gradient_norm": values["gradient_norm"],
                    "learning_rate": values["learning_rate"],
                    scored: self.progress.tokens,
                    f"{scored}_per_s": values["tokens"] * steps / lap,
                    "step_s": lap / steps,
                    "skipped": self.progress.skipped,
                    "input_wait_fraction": self.clock.fraction("input"),
                    "checkpoint_fraction": self.clock.fraction("checkpoint"),
                    "log_fraction": self.clock.fraction("log"),
                    **({"sources": sources} if sources else {}),
                }
            )

    def _validate(self) -> None:
        """Evaluates if that is due at this step and an earlier process has not done it."""
        run, every = self.run, self.run.eval_every_steps
        due = self.step in (0, run.steps) or (every and self.step % every == 0)
        if self.scorer is None or not due or self.step in self.validated:
            return
        self._settle()
        with self.clock.activity("evaluation"):
            scores = self.scorer(self.state.params, self.notice)
        if self.baseline is not None:
            scores["unigram_perplexity"] = self.baseline
        with self.clock.activity("log"):
            self.log.validation({"step": self.step, **scores})
        self.validated.add(self.step)

    def _save(self) -> None:
        """Starts writing a checkpoint, unless this step has one."""
        if self.saved_step == self.step:
            return
        jax.block_until_ready(self.state)  # the step's own time is not the checkpoint's
        record = {
            **self.record,
            "data_state": self.batches.state(),
            "progress": asdict(self.progress),
        }
        with self.clock.activity("checkpoint"):
            state = own_form(self.plan, self.state)
            self.store.save(self.step, state, self.run.execution.layers, record)
        self.saved_step = self.step

    def _note_commits(self, steps: list[int]) -> None:
        """Records checkpoints that have become complete."""
        with self.clock.activity("log"):
            for step in steps:
                self.log.event("checkpoint", step)
            if steps:
                self._write_status(RUNNING)

    def _write_samples(self) -> None:
        prompts = self.run.sample_prompts
        if not prompts:
            return
        params = own_form(self.plan, self.state).params
        continuations = continue_prompts(
            self.run,
            params,
            self.tokenizer,
            prompts,
            max_new_tokens=self.run.sample_tokens,
            sampling=self.run.sampling,
        )
        pairs = zip(prompts, continuations, strict=True)
        self.log.samples(self.step, [{"prompt": p, "continuation": c} for p, c in pairs])

    def _write_status(self, status: str, **details: Any) -> None:
        """Records the newest step that is safe on the disk."""
        saved = max(self.store.steps, default=0)
        known = {key: self.record[key] for key in ("identity", "source")}
        self.folder.write_status(status, saved, **known, **details)


def _open_training_batches(
    run: Run, plan: Blueprint, tokenizer: PreTrainedTokenizerBase
) -> BatchIterator:
    share, shares = partitioning.batch_share(partitioning.batch_sharding(plan.mesh, run.rules))
    return open_batches(
        run.train_data,
        head=run.head,
        batch_size=run.batch_size,
        seed=run.seed,
        steps=run.steps,
        process_index=share,
        process_count=shares,
        transform=run.objective.transform(tokenizer),
    )


def _check_tokenizers(run: Run, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuses ids that the model has no row for, or that mean something else in validation."""
    if run.validation_data is not None:
        other = read_tokenizer(run.validation_data)
        if other.fingerprint() != tokenizer.fingerprint():
            raise ValueError(
                "Run.train_data and Run.validation_data must be of one tokenizer, got "
                f"{tokenizer.fingerprint()[:12]} and {other.fingerprint()[:12]}"
            )
    check_vocabulary(run.model, run.head, tokenizer)


def _has_steps(folder: RunFolder) -> bool:
    """Whether an earlier call has taken a step there that it saved or logged."""
    saved = folder.read_status().get("step", 0)
    logged = read_metrics(folder.path) if (folder.path / METRICS).exists() else []
    return bool(saved or any(record["kind"] == "train" for record in logged))


def _check_same(saved: Any, now: Any, folder: RunFolder) -> None:
    """Refuses to resume a run whose numbers would not be those of an uninterrupted one."""
    found = differences(json.loads(json.dumps(saved)), json.loads(json.dumps(now)))
    if found:
        raise ValueError(
            f"{folder.path} holds a run with other settings: {'; '.join(found[:8])}. "
            "Use those settings to go on with it, or another Run.folder for a new run"
        )
