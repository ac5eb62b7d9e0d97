"""A run's model, ready to be used."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from xformer import partitioning
from xformer.data.tasks import Task
from xformer.data.tokenizer import load_tokenizer
from xformer.partitioning import MeshConfig
from xformer.tokenization.base import PreTrainedTokenizerBase
from xformer.training.checkpoints import CheckpointError, CheckpointStore
from xformer.training.config import Run
from xformer.training.evaluation import compile_outputs_step, in_order, open_pass, results
from xformer.training.folder import RunFolder
from xformer.training.state import Blueprint, blueprint


@dataclass(frozen=True)
class TrainedModel:
    """The newest verified checkpoint of a run.

    Attributes:
        run: The run, with a mesh and a batch size that fit the devices there are.
        plan: Its blueprint.
        params: The parameters, in the run's layer mode.
        tokenizer: The run's tokenizer.
        step: Steps the checkpoint had taken.
    """

    run: Run
    plan: Blueprint
    params: Any
    tokenizer: PreTrainedTokenizerBase
    step: int


def load_trained(run: Run) -> TrainedModel:
    """Reads the model of a run folder; a process that is still training there is not disturbed.

    Args:
        run: The run, as its folder's config.gin describes it.

    Returns:
        The model.

    Raises:
        FileNotFoundError: if the folder is no run folder.
        CheckpointError: if it holds no checkpoint that can be verified.
    """
    folder = RunFolder(run.folder)
    run = _fit(run)
    plan = blueprint(run, partitioning.make_mesh(run.mesh), pad=False)
    with CheckpointStore(run.checkpoint_folder) as store:
        restored = store.restore_params(run, plan)
    if restored is None:
        raise CheckpointError(f"{folder.path} holds no checkpoint yet; train it first")
    tokenizer = load_tokenizer(folder.tokenizer)
    return TrainedModel(run, plan, restored.state, tokenizer, restored.step)


def _fit(run: Run) -> Run:
    """The run on the devices there are, which may be other ones than it was trained on."""
    try:
        run.mesh.shape(jax.device_count())
    except ValueError:
        run = dataclasses.replace(run, mesh=MeshConfig())
    ways = partitioning.batch_ways(partitioning.make_mesh(run.mesh), run.rules)
    rows = -(-run.batch_size // (run.accumulation_steps * ways)) * ways
    execution = run.execution.on(jax.devices()[0].platform)
    return dataclasses.replace(run, batch_size=rows, accumulation_steps=1, execution=execution)


def predict(
    model: TrainedModel, task: Task, progress: Callable[[int], object] = lambda rows: None
) -> list[dict[str, Any]]:
    """What a model says about the rows of a task.

    Args:
        model: The model.
        task: The opened task.
        progress: Told how many rows are done.

    Returns:
        The task's predictions, one for each example.
    """
    run, plan = model.run, model.plan
    step = compile_outputs_step(run, plan, task)
    done = 0

    def shown() -> Iterator[tuple[np.ndarray, Any]]:
        nonlocal done
        for numbers, outputs in results(run, plan, step, model.params, batches):
            yield numbers, outputs
            done += len(numbers)
            progress(min(task.rows, done))

    with contextlib.closing(open_pass(run, task)) as batches:
        outputs = in_order(shown(), task)
    return task.predictions(outputs)
