"""Cutting sequences of ids to a length and filling them up to one: lists in, lists out."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from xformer.tokenization.settings import TruncationStrategy

_logger = logging.getLogger(__name__)

Ids = list[int]


def truncate(
    ids: Ids,
    pair_ids: Ids | None,
    excess: int,
    *,
    strategy: TruncationStrategy,
    stride: int,
    side: str,
) -> tuple[Ids, Ids | None, Ids]:
    """Removes tokens from one sequence or from a pair.

    Where the strategy cannot remove enough, it logs an error and removes nothing.

    Args:
        ids: the first sequence, without special tokens.
        pair_ids: the second one, where there is one.
        excess: number of tokens to remove.
        strategy: which sequence is cut.
        stride: number of kept tokens that the overflow repeats.
        side: "right" or "left", where tokens are removed.

    Returns:
        The two sequences, and the overflow: what was removed after (or before) `stride` kept
        tokens; empty where both sequences of a pair are cut.
    """
    if excess <= 0 or strategy is TruncationStrategy.DO_NOT_TRUNCATE:
        return ids, pair_ids, []
    if strategy is TruncationStrategy.LONGEST_FIRST and pair_ids is not None:
        first, second = _shares(len(ids), len(pair_ids), excess)
        return _cut(ids, first, side), _cut(pair_ids, second, side), []
    cuts_second = strategy is TruncationStrategy.ONLY_SECOND
    cutting = pair_ids if cuts_second else ids
    if cutting is None:
        return ids, pair_ids, []
    if len(cutting) <= excess:
        _logger.error(
            "%d tokens must be removed but the %s sequence has only %d; nothing is truncated, "
            "choose another truncation strategy than %r or a larger max_length",
            *(excess, "second" if cuts_second else "first", len(cutting), strategy.value),
        )
        return ids, pair_ids, []
    window = min(len(cutting), stride + excess)
    overflow = cutting[:window] if side == "left" else cutting[-window:]
    kept = _cut(cutting, excess, side)
    return (ids, kept, overflow) if cuts_second else (kept, pair_ids, overflow)


def _shares(first: int, second: int, excess: int) -> tuple[int, int]:
    """How many tokens go from each of a pair: from the longer one until both are equal."""
    levelling = min(abs(first - second), excess)
    rest = excess - levelling
    if first > second:
        return levelling + rest // 2, rest - rest // 2
    return rest // 2, levelling + rest - rest // 2


def _cut(ids: Ids, number: int, side: str) -> Ids:
    return ids[number:] if side == "left" else ids[: max(len(ids) - number, 0)]


def pad_row(
    row: Mapping[str, Any], length: int, *, side: str, fillers: Mapping[str, int]
) -> dict[str, Any]:
    """Fills one row up.

    Args:
        row: lists by name; only those in `fillers` are padded.
        length: wanted length of `input_ids`; longer rows stay as they are.
        side: "right" or "left", where the filling goes.
        fillers: what fills each list.

    Returns:
        The lists by name.
    """
    missing = length - len(row["input_ids"])
    padded = dict(row)
    for name in row.keys() & fillers.keys():
        filling = [fillers[name]] * missing
        padded[name] = row[name] + filling if side == "right" else filling + row[name]
    return padded


def round_up(length: int, multiple: int | None) -> int:
    """The next multiple that is not smaller.

    Args:
        length: any length.
        multiple: of what; `None` for any.

    Returns:
        The length.
    """
    return length if multiple is None else -(-length // multiple) * multiple


def as_lists(value: Any) -> Any:
    """Turns arrays (and sequences of arrays) into lists of numbers.

    Args:
        value: an array, a number, or a sequence of these.

    Returns:
        Numbers, or (nested) lists of them.
    """
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Sequence) and not isinstance(value, str):
        if {*map(type, value)} <= {int}:
            return list(value)  # A row of ids, which may be long.
        return [as_lists(one) for one in value]
    return value
