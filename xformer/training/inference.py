"""A run's model, ready to be used."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax

from xformer import partitioning
from xformer.data.tokenizer import load_tokenizer
from xformer.partitioning import MeshConfig
from xformer.tokenization.base import PreTrainedTokenizerBase
from xformer.training.checkpoints import CheckpointError, CheckpointStore
from xformer.training.config import Run
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
    plan = blueprint(run, partitioning.make_mesh(run.mesh))
    with CheckpointStore(folder.checkpoints) as store:
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
    return dataclasses.replace(run, batch_size=rows, accumulation_steps=1)
