"""Checkpoints: written in the background, verified when read, never half there.

orbax stores the arrays. A step counts only once its commit file exists; beside the state it holds a
record with a checksum, shape and dtype of every array, because storage errors and dtype changes
would otherwise pass in silence. A step that cannot be verified is moved aside and the one before it
is tried.
"""

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy
from orbax.checkpoint.options import AtomicityMode, AtomicityOptions

from xformer.layers.stack import restack
from xformer.training.config import Run
from xformer.training.fingerprint import tree_checksums
from xformer.training.state import Blueprint, TrainState, blueprint

QUARANTINE = "quarantine"
_TRASH = ".trash"


class CheckpointError(ValueError):
    """No saved state can be used, or saving failed."""


@dataclass(frozen=True)
class Restored:
    """A state read back.

    Attributes:
        state: The state, on the run's mesh and in its layer mode.
        record: What was saved beside it.
        quarantined: Steps that could not be verified, with the reason.
    """

    state: TrainState
    record: dict[str, Any]
    quarantined: dict[int, str]


class CheckpointStore:
    """The checkpoints of one run folder; a context manager that waits for writes on leaving."""

    def __init__(self, folder: Path, keep: int) -> None:
        """Opens or creates the store.

        Args:
            folder: Folder of the checkpoints, one subfolder per step.
            keep: How many of the newest steps stay.

        Raises:
            OSError: if the folder cannot be written.
        """
        self._folder = folder.absolute()
        self._folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self._folder / _TRASH, ignore_errors=True)
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                atomicity_options=AtomicityOptions(mode=AtomicityMode.COMMIT_FILE),
                cleanup_tmp_directories=True,
                preservation_policy=preservation_policy.LatestN(keep),
                todelete_subdir=_TRASH,
            ),
            item_names=("state", "record"),
        )

    def __enter__(self) -> "CheckpointStore":
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Waits for pending writes and closes; their errors propagate."""
        self.close()

    @property
    def steps(self) -> list[int]:
        """The steps that are complete, oldest first."""
        return sorted(self._manager.all_steps())

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
        arrays = {
            path: [list(leaf.shape), str(leaf.dtype)] for path, leaf in _named_leaves(state).items()
        }
        verified = {"layers": layers, "arrays": arrays, "checksums": tree_checksums(state)}
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), record=ocp.args.JsonSave({**record, **verified})
        )
        try:
            accepted = self._manager.save(step, args=args)
        except Exception as error:
            raise self._failed(error) from error
        if not accepted:
            raise CheckpointError(f"step {step} was not saved: {self._folder} has a newer one")

    def check(self) -> None:
        """Raises the error of a write in the background, if there was one.

        Raises:
            CheckpointError: with the cause.
        """
        try:
            self._manager.check_for_errors()
        except Exception as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Waits for pending writes, empties the trash and closes.

        Raises:
            CheckpointError: if a write failed.
        """
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            raise self._failed(error) from error
        finally:
            self._manager.close()
            shutil.rmtree(self._folder / _TRASH, ignore_errors=True)

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
        quarantined: dict[int, str] = {}
        for step in reversed(self.steps):
            try:
                record = self._read_record(step)
                target = _target(run, plan, record["layers"])
                state = self._read_state(step, record, target)
            except _MismatchError as error:
                raise CheckpointError(
                    f"checkpoint {self._folder / str(step)} holds another state than the run: "
                    f"{error}; use the config it was saved with, or another Run.folder"
                ) from error
            except Exception as error:  # anything a damaged file can cause in the readers
                quarantined[step] = f"{type(error).__name__}: {error}".splitlines()[0]
                self._quarantine(step)
                continue
            return Restored(_convert(state, run, plan, record["layers"]), record, quarantined)
        if quarantined:
            raise CheckpointError(
                f"no checkpoint in {self._folder} could be verified ({quarantined}); they were "
                f"moved to {self._folder.parent / QUARANTINE}. Start over with another Run.folder"
            )
        return None

    def _read_record(self, step: int) -> dict[str, Any]:
        args = ocp.args.Composite(record=ocp.args.JsonRestore())
        return self._manager.restore(step, args=args).record

    def _read_state(self, step: int, record: dict[str, Any], target: TrainState) -> TrainState:
        wanted = {
            path: [list(leaf.shape), str(leaf.dtype)]
            for path, leaf in _named_leaves(target).items()
        }
        _compare(record["arrays"], wanted)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(target))
        state = self._manager.restore(step, args=args).state
        sums = tree_checksums(state)
        damaged = [path for path, value in record["checksums"].items() if sums[path] != value]
        if damaged:
            raise CheckpointError(f"checksums differ for {damaged}")
        return state

    def _quarantine(self, step: int) -> None:
        """Moves a step aside; left in place it would make orbax skip later saves in silence."""
        place = self._folder.parent / QUARANTINE
        place.mkdir(exist_ok=True)
        taken = sum(1 for path in place.iterdir() if path.name.split(".")[0] == str(step))
        (self._folder / str(step)).rename(place / f"{step}.{taken}")
        self._manager.reload()

    def _failed(self, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"a checkpoint could not be written to {self._folder} ({error}); earlier ones are "
            "untouched. Free space or change Run.folder, then start again"
        )


class _MismatchError(Exception):
    """A checkpoint's arrays are not those of the run."""


def _named_leaves(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _compare(saved: dict[str, list], wanted: dict[str, list]) -> None:
    differences = [f"{path} is missing" for path in wanted.keys() - saved.keys()]
    differences += [f"{path} is not in the run" for path in saved.keys() - wanted.keys()]
    differences += [
        f"{path} is {saved[path]}, the run has {wanted[path]}"
        for path in wanted.keys() & saved.keys()
        if saved[path] != wanted[path]
    ]
    if differences:
        more = f" and {len(differences) - 8} more" if len(differences) > 8 else ""
        raise _MismatchError("; ".join(sorted(differences)[:8]) + more)


def _target(run: Run, plan: Blueprint, layers: str) -> TrainState:
    """The state's form with stacks as they were saved."""
    if layers == run.execution.layers:
        return plan.shapes
    execution = dataclasses.replace(run.execution, layers=layers)
    return blueprint(dataclasses.replace(run, execution=execution), plan.mesh).shapes


def _convert(state: TrainState, run: Run, plan: Blueprint, layers: str) -> TrainState:
    """The state with stacks as the run wants them."""
    if layers == run.execution.layers:
        return state

    def convert(state: TrainState) -> TrainState:
        opt_state = state.opt_state
        if run.optimizer.elementwise:
            opt_state = restack(opt_state, run.execution.layers)
        return TrainState(state.step, restack(state.params, run.execution.layers), opt_state)

    return jax.jit(convert, out_shardings=plan.shardings, donate_argnums=0)(state)
