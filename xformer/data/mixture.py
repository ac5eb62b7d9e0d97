"""Mixtures of corpora: which are read, and how large the share of each is."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from xformer.buckets import check_folder
from xformer.data.mixture_quotas import CorpusSize
from xformer.data.text_files import check_workers

MEASURES = ("characters", "rows")

Sizes = Mapping[str, CorpusSize]
Rates = dict[str, Fraction]


@dataclass(frozen=True)
class Proportional:
    """Every row as often as every other: the corpora are read as if they were one."""

    def rates(self, sizes: Sizes) -> Rates:
        """Says how many rows of each corpus are read, relative to the others.

        Args:
            sizes: size of each corpus.

        Returns:
            A positive number for each.
        """
        return {name: Fraction(size.rows) for name, size in sizes.items()}


@dataclass(frozen=True)
class Temperature:
    """Shares are as `size ** (1 / temperature)`: small corpora get more than they have.

    Attributes:
        temperature: 1 is `Proportional`; the higher, the more even the shares are.
        measure: what sizes and shares are counted in: "characters" or "rows".
    """

    temperature: float
    measure: str = "characters"

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        if not 1 <= self.temperature < math.inf:
            raise ValueError(f"Temperature.temperature must be at least 1, got {self.temperature}")
        _check_measure(self.measure, "Temperature.measure")

    def rates(self, sizes: Sizes) -> Rates:
        """Says how many rows of each corpus are read, relative to the others.

        Args:
            sizes: size of each corpus.

        Returns:
            A positive number for each.
        """
        exponent = 1 / self.temperature
        return {
            name: Fraction(getattr(size, self.measure) ** exponent) * _rows(size, self.measure)
            for name, size in sizes.items()
        }


@dataclass(frozen=True)
class UniMax:
    """Even shares, as far as `Mixture.max_epochs` allows (Chung et al., 2023).

    Corpora that are too small for an even share are read `max_epochs` times; what is left is
    divided evenly among the others (https://arxiv.org/abs/2304.09151, algorithm 1).

    Attributes:
        measure: what shares are counted in: "characters", as published, or "rows".
    """

    measure: str = "characters"

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        _check_measure(self.measure, "UniMax.measure")

    def rates(self, sizes: Sizes) -> Rates:
        """Says how many rows of each corpus are read, relative to the others.

        Args:
            sizes: size of each corpus.

        Returns:
            A positive number for each.
        """
        return {name: _rows(size, self.measure) for name, size in sizes.items()}


@dataclass(frozen=True)
class Weights:
    """Shares of rows that are given.

    Attributes:
        weights: weight of each corpus, by name; shares are in proportion. 0 leaves one out.
    """

    weights: dict[str, float]

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        for name, weight in self.weights.items():
            if not 0 <= weight < math.inf:
                raise ValueError(f"Weights.weights[{name!r}] must not be negative, got {weight}")
        if not any(self.weights.values()):
            raise ValueError(f"Weights.weights must have one above 0, got {self.weights}")

    def rates(self, sizes: Sizes) -> Rates:
        """Says how many rows of each corpus are read, relative to the others.

        Args:
            sizes: size of each corpus.

        Returns:
            The weight of each.
        """
        return {name: Fraction(self.weights[name]) for name in sizes}


Weighting = Proportional | Temperature | UniMax | Weights
"""What decides the shares of a mixture."""


@dataclass(frozen=True)
class Mixture:
    """Corpora written by `xformer prepare`, of one length and one tokenizer, read in turn.

    Every corpus is read through before its next epoch begins. A pass with an end reads each of them
    whole, whatever their shares; validation scores one after the other.

    Attributes:
        sources: folder of each corpus (or address, as `PreparedData.path`), by the name that logs
            and reports call it.
        weighting: what decides the share of each.
        max_epochs: how often a corpus is read at most; what it would be read beyond that goes to
            the others. The shares then depend on the number of rows that the run reads. None is
            no limit.
        shuffle: whether every epoch of a corpus has an order of its own; a pass with an end always
            reads each in order.
        workers: processes that read rows; 0 reads in threads of the training process.
    """

    sources: dict[str, str]
    weighting: Weighting = field(default_factory=Proportional)
    max_epochs: int | None = None
    shuffle: bool = True
    workers: int = 0

    def __post_init__(self) -> None:
        """Refuses values out of range, and a weighting that does not fit."""
        if not isinstance(self.sources, dict) or not self.sources:
            raise ValueError(
                f"Mixture.sources must be a dict of folders by name, got {self.sources!r}"
            )
        for name, path in self.sources.items():
            if not name or not path:
                raise ValueError(
                    f"Mixture.sources must map names to folders, got {name!r}: {path!r}"
                )
            check_folder(path, f"Mixture.sources[{name!r}]")
        if self.max_epochs is not None and self.max_epochs < 1:
            raise ValueError(
                f"Mixture.max_epochs must be at least 1 or None, got {self.max_epochs}"
            )
        check_workers(self.workers, "Mixture.workers")
        weighting = self.weighting
        if isinstance(weighting, UniMax) and self.max_epochs is None:
            raise ValueError(
                "Mixture.max_epochs must be set for UniMax, whose shares are as even as it allows"
            )
        if isinstance(weighting, Weights) and set(weighting.weights) != set(self.sources):
            raise ValueError(
                f"Weights.weights must name Mixture.sources {sorted(self.sources)}, got "
                f"{sorted(weighting.weights)}"
            )


def _check_measure(measure: str, key: str) -> None:
    if measure not in MEASURES:
        raise ValueError(f"{key} must be one of {MEASURES}, got {measure!r}")


def _rows(size: CorpusSize, measure: str) -> Fraction:
    """Rows of a corpus in which there is one of what is measured."""
    return Fraction(size.rows, getattr(size, measure))
