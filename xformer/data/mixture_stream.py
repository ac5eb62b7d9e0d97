"""The stream of rows of a mixture of prepared corpora."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import grain

from xformer.buckets import open_folder
from xformer.data.mixture import Mixture
from xformer.data.mixture_quotas import CorpusSize, divide
from xformer.data.mixture_schedule import SCHEDULE_VERSION, Schedule
from xformer.data.packing import Batch
from xformer.data.prepared_stream import PreparedStream
from xformer.data.row_stream import RowStream
from xformer.data.rows import allow_open_files
from xformer.data.streams import Request, State

_CYCLE = 2**40  # Rows among which shares are divided where there is no end.


class MixtureStream(RowStream):
    """Rows of several prepared corpora, each of which is read in its own order."""

    def __init__(self, config: Mixture, request: Request, steps: int | None) -> None:
        """Opens the corpora and divides the rows among them.

        Args:
            config: which corpora, and how they are mixed.
            request: what is wanted of them.
            steps: batches that will be read, where that is known.

        Raises:
            FileNotFoundError: a corpus is missing.
            ValueError: one is damaged, or they do not go together, or are too small for the run.
        """
        self._wanted = request
        self._corpora = {
            name: PreparedStream(open_folder(path, f"Mixture.sources[{name!r}]"), request)
            for name, path in config.sources.items()
        }
        _check_alike(self._corpora)
        counts = {name: one.manifest.counts for name, one in self._corpora.items()}
        self._sizes = {name: CorpusSize(c.rows, c.characters) for name, c in counts.items()}
        allow_open_files([one.source for one in self._corpora.values()])
        self._quotas = self._divide(config, steps)
        self._schedule = self._make_schedule()
        # The schedule has shuffled and repeated already.
        is_endless = request.epochs is None and config.max_epochs is None
        ordered = replace(request, shuffle=False, epochs=None if is_endless else 1)
        threads = max(one.threads for one in self._corpora.values())
        super().__init__(len(self._schedule), ordered, threads)

    def _divide(self, config: Mixture, steps: int | None) -> dict[str, int]:
        """Says how many rows of each corpus are read."""
        request = self._wanted
        if request.epochs is not None:
            return {name: size.rows * request.epochs for name, size in self._sizes.items()}
        rates = config.weighting.rates(self._sizes)
        if config.max_epochs is None:
            return divide(_CYCLE, rates)
        if steps is None:
            raise ValueError("Mixture.max_epochs needs the number of batches that will be read")
        limits = {name: size.rows * config.max_epochs for name, size in self._sizes.items()}
        try:
            return divide(steps * request.batch_size, rates, limits)
        except ValueError as error:
            raise ValueError(
                f"Mixture.max_epochs={config.max_epochs} is too low for Run.steps={steps} batches "
                f"of {request.batch_size}: {error}; raise it, or lower Run.steps"
            ) from error

    def _make_schedule(self) -> Schedule:
        return Schedule(list(self._quotas.values()), self._wanted.seed)

    def fingerprint(self) -> dict[str, Any]:
        """Describes everything that decides the batches.

        Returns:
            A JSON object; where the folders lie is not in it.
        """
        first = next(iter(self._corpora.values())).manifest
        sources = {
            name: {
                "rows": self._sizes[name].rows,
                "quota": self._quotas[name],
                "shards_sha256": one.manifest.content_sha256(),
            }
            for name, one in self._corpora.items()
        }
        return {
            "kind": "Mixture",
            **self._wanted.describe(),
            "seed": self._wanted.seed,  # decides the order of the corpora in any case
            "schedule_version": SCHEDULE_VERSION,
            "length": first.settings.length,
            "tokenizer": first.tokenizer.sha256,
            # In their order, which the schedule depends on.
            "names": list(sources),
            "sources": sources,
        }

    def reader(self) -> Callable[[int], Batch]:
        """Gives what reads a row by its place in the mixture; see `RowStream.reader`.

        Returns:
            The function.
        """
        corpora = [_Corpus(one.reader(), self._order(name)) for name, one in self._corpora.items()]
        # One of its own: it keeps the newest block, and readers are ahead of who counts.
        return _Reader(self._make_schedule(), corpora)

    def padding_row(self) -> Batch:
        """Gives a row of padding.

        Returns:
            Its arrays.
        """
        return next(iter(self._corpora.values())).padding_row()

    def sources(self, state: State) -> dict[str, dict[str, int | float]]:
        """Says what has been read of each corpus before a position.

        Args:
            state: the position.

        Returns:
            By name: `rows`, their `share` of all rows, and the `epochs` that they are.
        """
        place = min(state["batch"] * self._wanted.batch_size, len(self._schedule))
        counts = zip(self._sizes.items(), self._schedule.counts(place), strict=True)
        return {
            name: {"rows": count, "share": count / max(1, place), "epochs": count / size.rows}
            for (name, size), count in counts
        }

    def _order(self, name: str) -> grain.MapDataset:
        """The numbers of a corpus's rows in the order in which they are read, over all epochs."""
        # By name: corpora of one size differ in order, and another beside them changes none.
        digest = hashlib.sha256(f"{self._wanted.seed} {name}".encode()).digest()
        seed = int.from_bytes(digest[:7], "little")
        numbers = grain.MapDataset.range(self._sizes[name].rows)
        return replace(self._wanted, seed=seed).order(numbers)


@dataclass(frozen=True)
class _Corpus:
    """Reads the rows of a corpus; `order` gives their numbers."""

    read: Callable[[int], Batch]
    order: grain.MapDataset


@dataclass(frozen=True)
class _Reader:
    """Reads the rows of a mixture; reaches worker processes by pickling."""

    schedule: Schedule
    corpora: list[_Corpus]

    def __call__(self, place: int) -> Batch:
        """Reads the row at a place."""
        number, index = self.schedule[place]
        corpus = self.corpora[number]
        return corpus.read(int(corpus.order[index]))


def _check_alike(corpora: Mapping[str, PreparedStream]) -> None:
    """Refuses corpora whose rows differ in kind, and the same corpus twice."""
    seen: dict[str, str] = {}
    (first_name, first), *_ = corpora.items()
    for name, one in corpora.items():
        content = one.manifest.content_sha256()
        if content in seen:
            raise ValueError(
                f"Mixture.sources must be different corpora, but {seen[content]!r} and {name!r} "
                "hold the same rows; remove one of them"
            )
        seen[content] = name
        if one.manifest.counts.characters < 1:
            raise ValueError(f"Mixture.sources[{name!r}] must have characters; prepare it again")
        lengths = first.manifest.settings.length, one.manifest.settings.length
        tokenizers = first.manifest.tokenizer.sha256[:12], one.manifest.tokenizer.sha256[:12]
        for what, (wanted, got) in {"length": lengths, "tokenizer": tokenizers}.items():
            if wanted != got:
                raise ValueError(
                    f"Mixture.sources must be of one {what}: {first_name!r} has {wanted}, "
                    f"{name!r} has {got}; prepare one of them again"
                )
