"""The description of a run: everything that decides its numbers, and where it writes."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from etils import epath

from xformer.buckets import check_folder
from xformer.data.mixture import Mixture
from xformer.data.pipeline import PairData, PreparedData, TextData
from xformer.data.tasks import TaskData
from xformer.files import check_mounted
from xformer.generation.sampling import Sampling
from xformer.layers.execution import Execution
from xformer.layers.heads import (
    CausalLM,
    ConditionalGeneration,
    Head,
    MaskedLM,
    NextSentence,
    PreTraining,
)
from xformer.models.build import ModelConfig, supported_heads
from xformer.objectives import Classification, MaskedTokens, Objective
from xformer.optim import Constant, InverseSqrt, Optimizer
from xformer.partitioning import MeshConfig, Rules
from xformer.training.start import Pretrained

Data = PreparedData | TextData | PairData | Mixture | TaskData
"""Any data source."""


@dataclass(frozen=True)
class Checkpoints:
    """When and where state is saved.

    Attributes:
        every_steps: Steps between two checkpoints. The last step is always saved.
        keep: How many of the newest checkpoints stay.
        folder: Where they are, a folder or the address of one in a bucket ("gs://bucket/run", with
            the extra `gcs`), which no other run may use; None is `checkpoints` in `Run.folder`.
    """

    every_steps: int = 100
    keep: int = 2
    folder: str | None = None

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ValueError: naming the key.
        """
        if self.folder == "":
            raise ValueError("Checkpoints.folder must name a folder, or be None")
        if self.folder is not None:
            check_folder(self.folder, "Checkpoints.folder")
        for key in ("every_steps", "keep"):
            if getattr(self, key) < 1:
                raise ValueError(f"Checkpoints.{key} must be at least 1, got {getattr(self, key)}")


@dataclass(frozen=True)
class Run:
    """A training run.

    Attributes:
        model: The architecture.
        head: What its hidden states are turned into.
        objective: What it is trained to do.
        train_data: What it is trained on.
        optimizer: How it learns.
        steps: Number of optimizer steps.
        batch_size: Rows per step, over all devices and accumulation steps.
        folder: Where the run writes; created if it does not exist.
        validation_data: What it is evaluated on; None for no evaluation.
        start: Weights to start from; None draws all of them.
        execution: Dtype, layer mode and rematerialisation.
        mesh: Shape of the device mesh.
        rules: Logical axes to mesh axes.
        accumulation_steps: Parts that a batch is computed in, one after the other.
        seed: Decides the initial weights, dropout and the order of the data.
        log_every_steps: Steps between two records in the log.
        eval_every_steps: Steps between two evaluations; 0 evaluates before the first and after
            the last step only.
        eval_batches: Batches per evaluation, of a mixture shared out among its sources by size (one
            each at least); None for all of the validation data.
        checkpoints: When state is saved.
        sample_prompts: Prompts to continue after the last step; an encoder-decoder answers them.
        sample_tokens: Most tokens of a continuation, for which BigBird needs positions behind the
            longest prompt.
        sampling: How their tokens are chosen.
        nonfinite_limit: The run stops after this many steps in a row whose loss or gradient is not
            finite; such steps leave the state as it was.
    """

    model: ModelConfig
    head: Head
    objective: Objective
    train_data: Data
    optimizer: Optimizer
    steps: int
    batch_size: int
    folder: str
    validation_data: Data | None = None
    start: Pretrained | None = None
    execution: Execution = field(default_factory=Execution)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    rules: Rules = field(default_factory=Rules)
    accumulation_steps: int = 1
    seed: int = 0
    log_every_steps: int = 10
    eval_every_steps: int = 0
    eval_batches: int | None = None
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    sample_prompts: tuple[str, ...] = ()
    sample_tokens: int = 48
    sampling: Sampling = field(default_factory=Sampling)
    nonfinite_limit: int = 3

    def __post_init__(self) -> None:
        """Checks the fields against each other.

        Raises:
            ValueError: naming the key to change.
        """
        positive = ("steps", "batch_size", "accumulation_steps", "log_every_steps")
        for key in (*positive, "sample_tokens", "nonfinite_limit"):
            if getattr(self, key) < 1:
                raise ValueError(f"Run.{key} must be at least 1, got {getattr(self, key)}")
        if self.steps >= 2**31:
            raise ValueError(f"Run.steps must be below 2**31, got {self.steps}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"Run.seed must be in [0, 2**32), got {self.seed}")
        if self.eval_every_steps < 0:
            raise ValueError(
                f"Run.eval_every_steps must not be negative, got {self.eval_every_steps}"
            )
        if self.eval_batches is not None and self.eval_batches < 1:
            raise ValueError(
                f"Run.eval_batches must be at least 1 or None, got {self.eval_batches}"
            )
        if self.batch_size % self.accumulation_steps:
            raise ValueError(
                f"Run.accumulation_steps={self.accumulation_steps} must divide "
                f"Run.batch_size={self.batch_size}"
            )
        if not self.folder:
            raise ValueError("Run.folder must name a folder")
        check_mounted(self.folder, "Run.folder")
        if type(self.head) not in supported_heads(self.model):
            legal = [head.__name__ for head in supported_heads(self.model)]
            raise ValueError(
                f"Run.head must be one of {legal} for {type(self.model).__name__}, "
                f"got {type(self.head).__name__}"
            )
        if type(self.head) not in self.objective.heads:
            legal = [head.__name__ for head in self.objective.heads]
            raise ValueError(
                f"Run.objective {type(self.objective).__name__} needs Run.head to be one of "
                f"{legal}, got {type(self.head).__name__}"
            )
        if isinstance(self.objective, Classification):
            self.objective.check_head(self.head)
        if self.sample_prompts and not isinstance(self.head, CausalLM | ConditionalGeneration):
            raise ValueError(
                "Run.sample_prompts are continued or answered token by token, which needs Run.head "
                f"to be CausalLM or ConditionalGeneration, got {type(self.head).__name__}; remove "
                "them"
            )
        self._check_data()
        self.optimizer.build(self.steps)  # refuses a schedule that does not fit into the run

    def _check_data(self) -> None:
        """Refuses data that the head or the model cannot read."""
        model = type(self.model).__name__
        positions = getattr(self.model, "max_position_embeddings", None)
        for key in ("train_data", "validation_data"):
            data = getattr(self, key)
            if data is None:
                continue
            check_data(data, self.head, f"Run.{key}")
            if isinstance(data, PairData) and isinstance(self.objective, MaskedTokens):
                self.objective.check_pairs()
            length = getattr(data, "length", 0)  # a prepared corpus knows its own
            if positions is not None and length > positions:
                raise ValueError(
                    f"{type(data).__name__}.length={length} must be at most "
                    f"{model}.max_position_embeddings={positions}"
                )
        if isinstance(self.validation_data, TaskData) and self.eval_batches is not None:
            raise ValueError(
                "Run.eval_batches must be None for a task, whose metrics are those of whole files; "
                f"got {self.eval_batches}"
            )

    @property
    def scores_text(self) -> bool:
        """Whether the loss is that of tokens of text, so that its exponential is a perplexity."""
        return self.objective.scored == "tokens" and not isinstance(self.train_data, TaskData)

    @property
    def checkpoint_folder(self) -> epath.Path:
        """Where the checkpoints are, a folder or one in a bucket."""
        if self.checkpoints.folder is None:
            return epath.Path(self.folder) / "checkpoints"
        return epath.Path(self.checkpoints.folder)

    @property
    def quarantine_folder(self) -> epath.Path:
        """Where checkpoints are moved that cannot be verified, beside those of no other run."""
        place = self.folder if self.checkpoints.folder is None else self.checkpoints.folder
        return epath.Path(place) / "quarantine"

    def identity(self) -> dict[str, Any]:
        """The part of the description that decides the numbers of the run, as JSON values.

        A run is resumed only with the identity that it was started with. The mesh, layers, remat
        and accumulation (which change roundings at most), where it writes and how often it logs,
        evaluates and saves may change; so may `steps`, if the learning rate does not depend on it.

        Returns:
            Nested dicts.
        """
        keys = ["model", "head", "objective", "optimizer", "batch_size", "seed", "steps"]
        if isinstance(self.optimizer.learning_rate, int | float | Constant | InverseSqrt):
            keys.remove("steps")
        if self.start is not None:
            keys.append("start")
        values = {key: describe(getattr(self, key)) for key in keys}
        return {**values, "dtype": self.execution.dtype}


def check_data(data: Data, head: Head, key: str) -> None:
    """Refuses data whose rows are not what a head learns from.

    Args:
        data: The data.
        head: The head.
        key: Where the data are bound, for the message.

    Raises:
        ValueError: naming the keys.
    """
    if isinstance(data, TaskData):
        return data.check_head(head)
    wanted = "PreparedData, TextData or a Mixture"
    legal: tuple[type, ...] = (CausalLM, MaskedLM, ConditionalGeneration)
    if isinstance(data, PairData):
        legal = (MaskedLM, NextSentence, PreTraining)
    if isinstance(head, NextSentence | PreTraining):
        wanted = "PairData"
    elif not isinstance(head, CausalLM | MaskedLM | ConditionalGeneration):
        wanted = "data of its task, with labels"
    if not isinstance(head, legal):
        raise ValueError(
            f"Run.head {type(head).__name__} learns from {wanted}, got {type(data).__name__}; set "
            f"{key} or Run.head"
        )


def describe(value: Any) -> Any:
    """A config value as JSON: dataclasses become dicts that name their class."""
    if dataclasses.is_dataclass(value):
        named = [field.name for field in dataclasses.fields(value) if field.compare]
        fields = {name: describe(getattr(value, name)) for name in named}
        return {"class": type(value).__name__, **fields}
    if isinstance(value, tuple | list):
        return [describe(item) for item in value]
    return value
