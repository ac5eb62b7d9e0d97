"""What a comparison is made of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Outputs = Mapping[str, np.ndarray]
"""What a program computes, by names that its peers share."""

OURS = "xformer"


@dataclass(frozen=True)
class Setting:
    """What the sides of a case are built for.

    Attributes:
        folder: A folder that the sides of the case share; the first side writes weights into it.
        quick: Whether sizes are small, to see that everything works.
        threads: Threads of each process, on a CPU.
        platform: "cpu" or "gpu"; "any" for what JAX finds.
        dtype: The numbers that are multiplied.
    """

    folder: Path
    quick: bool
    threads: int
    platform: str
    dtype: str = "float32"

    def size(self, published: Any, small: Any) -> Any:
        """The first, or the second of a quick run."""
        return small if self.quick else published


@dataclass
class Program:
    """What one process runs.

    Attributes:
        run: Computes once, and waits for it.
        outputs: Computes what is compared, before anything is timed.
        figures: What is known without running: "compile" (seconds, tracing included), "temporary"
            (bytes beside inputs and outputs), "flops" (of matrix products) and "bytes" (that one
            run must at least read and write).
        units: What a run's time and temporary memory are divided by before they are compared.
    """

    run: Callable[[], Any]
    outputs: Callable[[], Outputs]
    figures: dict[str, Any] = field(default_factory=dict)
    units: int = 1


@dataclass(frozen=True)
class Side:
    """One of those that a case compares.

    Attributes:
        build: Makes the program, in a process of its own.
        another: Whether it computes something else on purpose (a larger model, say), and its
            outputs are nobody else's.
        timed: Whether it is timed; if not, it is there for its outputs.
    """

    build: Callable[[Setting], Program]
    another: bool = False
    timed: bool = True


@dataclass(frozen=True)
class Goal:
    """How much better than a peer xformer shall be: the peer's figure through ours.

    Attributes:
        peer: The side; `OURS` where what counts is the share of the machine's limit.
        at_least: The least that is good enough; None where the ratio is only shown.
        aim: What is hoped for; None if that is `of_limit`, or nothing.
        of_limit: The share of the machine's limit that is hoped for.
        measure: "seconds", "temporary" (bytes), "compile" (seconds) or "of_limit" (the share of
            the machine's limit, without a peer).
    """

    peer: str
    at_least: float | None = None
    aim: float | None = None
    of_limit: float | None = None
    measure: str = "seconds"


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        name: What `--only` calls it; begins with the family.
        work: What is computed, for people.
        sides: The sides; the first, `OURS`, is what goals are about, and is built first.
        goals: What shall be reached.
        tolerance: How far outputs may be apart, as a part of the largest value of the peer; 0 for
            tokens.
        timed: Whether programs are run at all; if not, compiling them is what is compared.
        dtype: The numbers that are multiplied, which the machine's limit is measured with.
        platform: "gpu" for what GPUs alone are measured at; small sizes are computed everywhere.
        huge_pages: Whether all sides have memory in huge pages on a CPU, as in `xformer train`.
        note: What must be known to read the row.
    """

    name: str
    work: str
    sides: Mapping[str, Side]
    goals: tuple[Goal, ...]
    tolerance: float = 1e-4
    timed: bool = True
    dtype: str = "float32"
    platform: str = "any"
    huge_pages: bool = False
    note: str = ""

    @property
    def remarks(self) -> str:
        """What must be known to read the row, and what memory the sides have."""
        return " ".join(filter(None, (self.note, "Memory in huge pages." * self.huge_pages)))

    @property
    def family(self) -> str:
        """The family."""
        return self.name.partition("-")[0]

    def is_for(self, platform: str, *, quick: bool) -> bool:
        """Whether the case is measured on a platform."""
        return quick or self.platform in ("any", platform)
