"""Batches for training and evaluation: configuration, position and identity of a data stream.

    config -> open_batches(...) -> BatchIterator -> {"input_ids", "segment_ids", "position_ids"}

`PreparedData` reads the rows that `xformer prepare` wrote: any batch can be computed from its
number, so the position is that number.  `TextData` gives the same kind of batch, tokenizing and
packing documents while training; its position also names the document in which the next row begins.
`Mixture` reads several prepared corpora in turn, and any of its batches by its number, too.
`PairData` makes pairs of texts of documents, and tasks (`xformer.data.tasks`) labelled rows: both
have `attention_mask` and `token_type_ids` in place of segments.  In all, the global batch k does
not depend on the number of processes or workers.
"""

from dataclasses import dataclass

from xformer.buckets import check_folder, on_disk, open_folder
from xformer.data.iterator import BatchIterator
from xformer.data.manifest import TOKENIZER_FOLDER, read_manifest
from xformer.data.mixture import Mixture
from xformer.data.mixture_stream import MixtureStream
from xformer.data.pair_stream import PairStream
from xformer.data.prepared_stream import PreparedStream
from xformer.data.streams import Request
from xformer.data.task_stream import TaskStream
from xformer.data.tasks import Task, TaskData
from xformer.data.text_files import PairData, TextData, check_workers
from xformer.data.text_stream import TextStream
from xformer.data.tokenizer import load_tokenizer
from xformer.data.transform import RowTransform
from xformer.layers.heads import Head
from xformer.tokenization.base import PreTrainedTokenizerBase


@dataclass(frozen=True)
class PreparedData:
    """A corpus written by `xformer prepare`.

    Attributes:
        path: its folder, or the address of one in a bucket ("gs://bucket/folder", with the extra
            `gcs`).
        shuffle: whether every epoch has an order of its own; a pass with an end is always in order.
        workers: processes that read rows; 0 reads in threads of the training process.
    """

    path: str
    shuffle: bool = True
    workers: int = 0

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        if not self.path:
            raise ValueError("PreparedData.path must name a folder, got an empty string")
        check_folder(self.path, "PreparedData.path")
        check_workers(self.workers, "PreparedData.workers")


def open_batches(
    config: PreparedData | TextData | PairData | Mixture | TaskData | Task,
    *,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    epochs: int | None = None,
    steps: int | None = None,
    transform: RowTransform | None = None,
    head: Head | None = None,
) -> BatchIterator:
    """Opens a data stream, checking its files.

    Args:
        config: what to read; a task may have been opened.
        batch_size: rows of a batch over all processes.
        seed: decides the order; the same seed gives the same batches.
        process_index: which share of every batch this process reads, a run of its rows.
        process_count: number of processes; must divide `batch_size`.
        epochs: None repeats without end, in a new order every epoch; a number makes so many passes
            in order and fills the last batch up with rows of padding, which score nothing.
        steps: batches that will be read; where a `Mixture` has `max_epochs`, its shares depend on
            it and it ends after so many. No other data need it.
        transform: is applied to every row, with random numbers that depend on `seed`, epoch and
            row alone (of a `Mixture` on `seed` and place): batch size, processes and workers change
            nothing, nor does resuming.
        head: what the model's hidden states are turned into, for data with labels.

    Returns:
        An iterator over dictionaries of arrays `[batch_size / process_count, ...]`.

    Raises:
        FileNotFoundError: files are missing.
        ValueError: an argument is out of range, or files are damaged or hold no text.
    """
    if process_count < 1 or not 0 <= process_index < process_count:
        raise ValueError(f"process_index must be in 0..{process_count - 1}, got {process_index}")
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"batch_size={batch_size} must be a positive multiple of the {process_count} "
            "processes; change Run.batch_size"
        )
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be in 0..2**63-1, got {seed}; change Run.seed")
    if epochs is not None and epochs < 1:
        raise ValueError(f"epochs must be None or at least 1, got {epochs}")
    if steps is not None and steps < 1:
        raise ValueError(f"steps must be None or at least 1, got {steps}")
    if isinstance(config, TaskData):
        if head is None:
            raise ValueError(f"{type(config).__name__} needs the head that its labels are for")
        config = config.open(head)
    settings = config.data if isinstance(config, Task) else config
    request = Request(
        batch_size=batch_size,
        seed=seed,
        process_index=process_index,
        process_count=process_count,
        epochs=epochs,
        shuffle=settings.shuffle and epochs is None,
        workers=0 if isinstance(settings, TaskData) else settings.workers,
        transform=transform,
    )
    if isinstance(config, Task):
        return BatchIterator(TaskStream(config, request))
    if isinstance(config, PreparedData):
        key = "PreparedData.path"
        return BatchIterator(PreparedStream(open_folder(config.path, key), request))
    if isinstance(config, Mixture):
        return BatchIterator(MixtureStream(config, request, steps))
    if isinstance(config, PairData):
        return BatchIterator(PairStream(config, read_tokenizer(config), request))
    stream = TextStream.open(
        config.files,
        read_tokenizer(config),
        length=config.length,
        options=config.source_options(),
        bad_row_limit=config.bad_row_limit,
        request=request,
    )
    return BatchIterator(stream)


def read_tokenizer(
    config: PreparedData | TextData | PairData | Mixture | TaskData,
) -> PreTrainedTokenizerBase:
    """Reads the tokenizer that a data stream's ids belong to.

    Args:
        config: the data.

    Returns:
        The tokenizer.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not the one that the corpus was prepared with.
    """
    if isinstance(config, TextData | PairData | TaskData):
        # A path is never taken for a name of the hub.
        return load_tokenizer(config.tokenizer)
    # All corpora of a mixture have the tokenizer of the first; its stream sees to that.
    if isinstance(config, Mixture):
        folder = open_folder(next(iter(config.sources.values())), "Mixture.sources")
    else:
        folder = open_folder(config.path, "PreparedData.path")
    wanted = read_manifest(folder).tokenizer.sha256
    with on_disk(folder / TOKENIZER_FOLDER) as copied:
        tokenizer = load_tokenizer(copied)
    tokenizer.name_or_path = str(folder / TOKENIZER_FOLDER)
    if tokenizer.fingerprint() != wanted:
        raise ValueError(
            f"{folder / TOKENIZER_FOLDER} must be the tokenizer that the corpus was prepared with "
            f"({wanted[:12]}), got {tokenizer.fingerprint()[:12]}; prepare the corpus again"
        )
    return tokenizer
