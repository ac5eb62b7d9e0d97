"""Checkpoints: written in the background, verified when read, never half there.

orbax stores the arrays. A step counts only once its commit file exists; beside the state it holds a
record with a checksum, shape and dtype of every array, because storage errors and dtype changes
would otherwise pass in silence. A step that cannot be verified is moved aside and the one before it
is tried.
"""

import contextlib
import dataclasses
import itertools
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy
from orbax.checkpoint.options import AtomicityMode, AtomicityOptions, MultiprocessingOptions

from xformer import distributed, partitioning
from xformer.buckets import is_in_bucket, naming
from xformer.layers.stack import restack
from xformer.training.agreement import agreed
from xformer.training.config import Run
from xformer.training.integrity import (
    DamagedError,
    MismatchError,
    brief,
    check_contents,
    check_forms,
    check_record,
    seal,
)
from xformer.training.state import Blueprint, TrainState, blueprint

_TRASH = ".trash"
_COMMIT = "commit_success.txt"
# How much longer than this process another one may write its parts of a checkpoint.
_WRITING_S = 1800


class CheckpointError(ValueError):
    """No saved state can be used, or saving failed."""


@dataclass(frozen=True)
class Restored:
    """A state read back.

    Attributes:
        state: The state (or the parameters alone), on the run's mesh and in its layer mode.
        record: What was saved beside it.
        step: Steps it had taken.
        quarantined: Steps that could not be verified, with the reason.
    """

    state: Any
    record: dict[str, Any]
    step: int
    quarantined: dict[int, str]


def complete_steps(folder: epath.PathLike) -> list[int]:
    """The steps that are complete, oldest first.

    Args:
        folder: Folder of the checkpoints.

    Returns:
        Their numbers; none where there is no such folder.
    """
    commits = _opened(folder).glob(f"*/{_COMMIT}")
    return sorted(int(path.parent.name) for path in commits if path.parent.name.isdigit())


class CheckpointStore:
    """The checkpoints of one run folder; a context manager that waits for writes on leaving."""

    def __init__(self, folder: epath.PathLike, keep: int | None = None) -> None:
        """Opens or creates the store.

        Args:
            folder: Folder of the checkpoints, one subfolder per step; may be one in a bucket.
            keep: How many of the newest steps stay; None opens the store for reading, beside a
                process that may be writing to it.

        Raises:
            FileNotFoundError: if there is nothing to read.
            ModuleNotFoundError: if what reads and writes buckets is not installed.
            OSError: if the folder cannot be written.
        """
        self._folder = _opened(folder)
        self._is_writer = keep is not None
        self._is_cleaner = self._is_writer and distributed.is_first()
        self._unconfirmed: list[int] = []
        self._cleaner: threading.Thread | None = None
        if self._is_writer:
            _make_folder(self._folder, "Checkpoints of a run.")
            self._discard_unfinished()
            self._empty_trash()
        elif not self._folder.is_dir():
            raise FileNotFoundError(f"{folder.parent} is no run folder: it has no {folder.name}")
        distributed.meet("open the checkpoints")
        everybody = set(range(distributed.process_count()))
        # Each process reads by itself: one that finds damage must not leave others in a barrier.
        self._reader = _manager(self._folder, None, {distributed.process_index()})
        self._manager = _manager(self._folder, keep, everybody) if self._is_writer else self._reader

    def __enter__(self) -> "CheckpointStore":
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Waits for pending writes and closes; their errors propagate."""
        self.close()

    @property
    def steps(self) -> list[int]:
        """The steps that are complete, oldest first."""
        return complete_steps(self._folder)

    def save(self, step: int, state: TrainState, layers: str, record: dict[str, Any]) -> None:
        """Starts writing a step; returns once the state may be donated.

        Args:
            step: Number of steps taken.
            state: The state.
            layers: Layer mode of its stacks, "loop" or "scan".
            record: Anything JSON to keep beside it.

        Raises:
            CheckpointError: if an earlier write failed or this one was not accepted.
        """
        self.check()
        distributed.meet(f"save step {step}")
        self._empty_trash()
        args = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state),
            record=ocp.args.JsonSave(seal({**record, "layers": layers}, state)),
        )
        with self._naming_failure():
            accepted = self._manager.save(step, args=args)
        if not accepted:
            raise CheckpointError(f"step {step} was not saved: {self._folder} has a newer one")
        self._unconfirmed.append(step)

    def check(self) -> list[int]:
        """Looks at the writes in the background.

        Returns:
            Steps that have become complete since the last call.

        Raises:
            CheckpointError: if a write failed, with the cause.
        """
        with self._naming_failure():
            self._manager.check_for_errors()
        done = [step for step in self._unconfirmed if (self._folder / str(step) / _COMMIT).exists()]
        self._unconfirmed = [step for step in self._unconfirmed if step not in done]
        return done

    def wait(self) -> list[int]:
        """Waits for the writes in the background.

        Returns:
            Steps that have become complete since the last call of `check` or `wait`.

        Raises:
            CheckpointError: if a write failed, with the cause.
        """
        with self._naming_failure():
            self._manager.wait_until_finished()
        return self.check()

    def close(self) -> None:
        """Waits for pending writes, empties the trash and closes.

        Raises:
            CheckpointError: if a write failed.
        """
        try:
            self.wait()
        finally:
            with self._naming_failure():
                for manager in {self._manager, self._reader}:
                    manager.close()
            if self._is_cleaner:
                self._empty_trash()
                self._finish_cleaning()
                _delete([self._folder / _TRASH])

    def restore(self, run: Run, plan: Blueprint) -> Restored | None:
        """Reads the newest step that can be verified.

        Args:
            run: The run, for the layer mode wanted.
            plan: Its blueprint: shapes, dtypes and shardings wanted.

        Returns:
            The state, or None if there is no step at all.

        Raises:
            CheckpointError: if the newest step belongs to another model or optimizer, or if there
                are steps but none can be verified.
        """
        return self._newest(
            run,
            lambda layers: _target(run, plan, layers),
            lambda state, layers: _convert(state, run, plan, layers),
        )

    def restore_params(self, run: Run, plan: Blueprint) -> Restored | None:
        """Reads the parameters alone of the newest step that can be verified.

        Args:
            run: The run, for the layer mode wanted.
            plan: Its blueprint.

        Returns:
            As `restore`, with the parameters as the state; None if there is no step at all.

        Raises:
            CheckpointError: as for `restore`.
        """
        return self._newest(
            run,
            lambda layers: {"params": _target(run, plan, layers).params},
            lambda tree, layers: _convert(tree["params"], run, plan, layers),
        )

    def _newest(
        self, run: Run, target: Callable[[str], Any], convert: Callable[[Any, str], Any]
    ) -> Restored | None:
        """Reads the newest step that can be verified, then moves those aside that cannot."""
        damaged: dict[int, str] = {}
        for step in reversed(distributed.of_first("look for checkpoints", self.steps)):
            try:
                record, tree = self._read(step, target)
            except MismatchError as error:
                raise CheckpointError(
                    f"checkpoint {self._folder / str(step)} holds another state than the run: "
                    f"{error}; use the config it was saved with, or another Run.folder"
                ) from error
            except DamagedError as error:
                damaged[step] = str(error)
                continue
            self._set_aside(list(damaged), run.quarantine_folder)
            return Restored(convert(tree, record["layers"]), record, step, damaged)
        if damaged:
            raise CheckpointError(
                f"no checkpoint in {self._folder} could be verified: {damaged}. Nothing was moved "
                "or deleted: put back sound copies, or start over with another Run.folder"
            )
        return None

    def _read(self, step: int, target: Callable[[str], Any]) -> tuple[dict[str, Any], Any]:
        """Reads a step and verifies it, each process its parts; all find it sound, or none."""

        def verify() -> None:
            check_contents(record, tree)
            if isinstance(tree, TrainState) and int(tree.step) != step:
                raise DamagedError(f"it holds step {int(tree.step)}")

        record = agreed(f"read the record of step {step}", lambda: self._read_record(step))
        wanted = target(record["layers"])  # what is wrong with the run is no damage
        check_forms(record, wanted, whole=isinstance(wanted, TrainState))
        arrays = f"read the arrays of step {step}"
        tree = agreed(arrays, lambda: self._read_arrays(step, wanted))
        agreed(f"verify step {step}", verify)  # the checksums are of all processes' parts
        return record, tree

    def _read_record(self, step: int) -> dict[str, Any]:
        args = ocp.args.Composite(record=ocp.args.JsonRestore())
        record = self._reader.restore(step, args=args).record
        check_record(record)
        return record

    def _read_arrays(self, step: int, target: Any) -> Any:
        # Missing it, orbax raises something else than for other files.
        (self._folder / str(step) / "state" / "_METADATA").stat()
        restore = ocp.args.PyTreeRestore(
            item=target,
            restore_args=ocp.checkpoint_utils.construct_restore_args(target),
            partial_restore=not isinstance(target, TrainState),
        )
        return self._reader.restore(step, args=ocp.args.Composite(state=restore)).state

    def _set_aside(self, steps: list[int], quarantine: epath.Path) -> None:
        """Moves steps away; left in place they would make orbax skip later saves in silence."""
        if not (steps and self._is_writer):
            return
        if self._is_cleaner:
            _make_folder(quarantine, "Checkpoints that could not be verified.")
            taken = {path.name for path in quarantine.iterdir()}
            for step in steps:
                names = (f"{step}.{number}" for number in itertools.count())
                free = next(name for name in names if name not in taken)
                (self._folder / str(step)).rename(quarantine / free)
        # Only once all are gone: what looks at a folder while it is moved fails.
        distributed.meet("set damaged checkpoints aside")
        self._manager.reload()

    def _discard_unfinished(self) -> None:
        """Moves away the steps that a killed process was writing.

        orbax would delete them in the background, and again when it writes such a step: of the two,
        one finds files gone.
        """
        if not self._is_cleaner:
            return
        trash = self._folder / _TRASH
        for step in list(self._folder.iterdir()):
            if not step.name.isdigit() or (step / _COMMIT).exists():
                continue
            if is_in_bucket(step):  # nothing there is moved without being copied
                step.rmtree()
                continue
            trash.mkdir(exist_ok=True)
            step.rename(trash / f"{step.name}.{time.time_ns()}")

    def _empty_trash(self) -> None:
        """Deletes in the background what orbax has moved away, which it never does itself."""
        if not self._is_cleaner:
            return
        trash = self._folder / _TRASH
        self._finish_cleaning()
        if trash.is_dir():
            self._cleaner = threading.Thread(target=_delete, args=(list(trash.iterdir()),))
            self._cleaner.start()

    def _finish_cleaning(self) -> None:
        if self._cleaner:
            self._cleaner.join()
            self._cleaner = None

    @contextlib.contextmanager
    def _naming_failure(self) -> Iterator[None]:
        """Within it, an error of a write says what it means and which key to change."""
        try:
            yield
        except distributed.PeerError:
            raise
        except Exception as error:
            if late := distributed.late_at_barrier(error):
                raise distributed.PeerError(
                    f"processes {late} have not come to where a checkpoint is handed over"
                ) from error
            raise CheckpointError(
                f"a checkpoint could not be written to {self._folder} ({brief(error)}); earlier "
                "ones are untouched. Free space or change Run.folder, then start again"
            ) from error


def _manager(folder: epath.Path, keep: int | None, processes: set[int]) -> ocp.CheckpointManager:
    """What reads or writes a folder of checkpoints together with the other processes named."""
    return ocp.CheckpointManager(
        folder,
        options=ocp.CheckpointManagerOptions(
            atomicity_options=AtomicityOptions(mode=AtomicityMode.COMMIT_FILE),
            preservation_policy=preservation_policy.LatestN(keep),
            todelete_subdir=None if is_in_bucket(folder) else _TRASH,
            create=False,
            async_options=ocp.AsyncOptions(
                timeout_secs=2 * _WRITING_S,  # of writing and waiting together
                # Made in the background, a folder that cannot be made is noticed only by a timeout.
                create_directories_asynchronously=False,
                barrier_sync_fn=lambda *, key, timeout_ms: distributed.wait_for_all(
                    key, "complete a checkpoint", _WRITING_S
                ),
            ),
            # Named, they meet through the coordination service, whose waits end.
            multiprocessing_options=MultiprocessingOptions(
                primary_host=min(processes), active_processes=processes
            ),
        ),
        item_names=("state", "record"),
    )


def _opened(folder: epath.PathLike) -> epath.Path:
    """The folder as orbax wants it, once it is known that it can be looked at."""
    path = epath.Path(folder)
    if not is_in_bucket(path):
        return epath.Path(Path(folder).absolute())
    with naming(path, "Checkpoints.folder"):
        path.exists()
    return path


def _make_folder(folder: epath.Path, about: str) -> None:
    """Makes a folder; in a bucket one is there only as long as it has a file."""
    folder.mkdir(parents=True, exist_ok=True)
    if is_in_bucket(folder):
        (folder / "about.txt").write_text(about + "\n")


def _delete(folders: list[epath.Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _target(run: Run, plan: Blueprint, layers: str) -> TrainState:
    """The state's form with stacks as they were saved."""
    if layers == run.execution.layers:
        return plan.own_shapes
    looped = run.execution.looped()  # what recomputes and what offloads decides no form
    execution = dataclasses.replace(looped, layers=layers)
    return blueprint(dataclasses.replace(run, execution=execution), plan.mesh).own_shapes


def _convert(tree: Any, run: Run, plan: Blueprint, layers: str) -> Any:
    """A state, or its parameters, as the run wants it: stacks, and padding where there is some."""
    if layers == run.execution.layers and not plan.is_padded:
        return tree
    is_state = isinstance(tree, TrainState)
    wanted = plan.shapes if is_state else plan.shapes.params

    def convert(tree: Any) -> Any:
        new = restack(tree, run.execution.layers)
        if is_state and not run.optimizer.elementwise:  # then it is always that of loops
            new = dataclasses.replace(new, opt_state=tree.opt_state)
        return partitioning.resized(new, wanted)

    places = jax.tree.map(lambda leaf: leaf.sharding, wanted)
    return jax.jit(convert, out_shardings=places)(tree)
