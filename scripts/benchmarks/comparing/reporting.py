"""What came of the cases: a table, a picture, a page."""

from collections.abc import Iterable, Sequence
from typing import Any

from comparing.case import OURS
from xformer.training import page

Record = dict[str, Any]

HEAD = (
    "work",
    "peer",
    "ratio (quartiles)",
    "at least",
    "aim",
    "",
    "ours",
    "peer's",
    "of the limit",
)
SIDES_HEAD = (
    "work",
    "side",
    "time (quartiles)",
    "of the limit",
    "peak of the process",
    "temporary memory",
    "compiled in",
    "operations",
    "bytes",
)
BEGINS, ENDS = "<!-- peers.py writes from here -->", "<!-- to here -->"
_MEASURES = {"seconds": "time", "temporary": "temporary memory", "compile": "time to compile"}


def rows(records: Iterable[Record]) -> list[tuple[str, ...]]:
    """The table: a row for each goal.

    Args:
        records: The records of cases.

    Returns:
        Its rows, of as many cells as `HEAD`.
    """
    found = []
    for record in records:
        if "refused" in record:
            found.append((record["work"], "", "refused: " + record["refused"], *[""] * 6))
            continue
        for goal in record["goals"]:
            ours, theirs = record["sides"][OURS], record["sides"][goal["peer"]]
            measure, of_limit = goal["measure"], ""
            if measure == "of_limit":
                theirs = {"seconds": ours["of_limit"] * ours["seconds"]}
            if measure in ("seconds", "of_limit"):
                of_limit, measure = f"{ours['of_limit']:.0%}", "seconds"
            found.append(
                (
                    record["work"],
                    peer(goal),
                    ratio(goal),
                    f"{goal['at_least']:.3g}" if goal["at_least"] else "",
                    aim(goal),
                    {True: "met", False: "missed", None: ""}[goal["met"]],
                    amount(ours, measure),
                    amount(theirs, measure),
                    of_limit,
                )
            )
    return found


def sides(records: Iterable[Record]) -> list[tuple[str, ...]]:
    """All figures: a row for each side.

    Args:
        records: The records of cases.

    Returns:
        The rows, of as many cells as `SIDES_HEAD`; what is not known of a side is empty.
    """
    found = []
    for record in records:
        for name, side in record.get("sides", {}).items():
            time, share = "", ""
            if "seconds" in side:
                low, high = (one / side["seconds"] - 1 for one in side["quartiles"])
                time = f"{amount(side, 'seconds')} ({low:+.0%} to {high:+.0%})"
            if "of_limit" in side:
                share = f"{side['of_limit']:.0%}"
            known = ("peak", "temporary", "compile", "flops", "bytes")
            rest = (amount(side, one) if one in side else "" for one in known)
            found.append((record["work"], name, time, share, *rest))
    return found


def peer(goal: Record) -> str:
    """What the ratio of a goal is to."""
    if goal["measure"] == "of_limit":
        return "the machine's limit"
    return f"{goal['peer']}, {_MEASURES[goal['measure']]}"


def ratio(goal: Record) -> str:
    """The ratio of a goal, and how it spreads."""
    low, high = goal["quartiles"]
    spread = f" ({low:.2f}-{high:.2f})" if high > low else ""
    return f"{goal['ratio']:.2f}{spread}"


def aim(goal: Record) -> str:
    """What is hoped for."""
    if goal["of_limit"]:
        return f"{goal['of_limit']:.0%} of the limit"
    return f"{goal['aim']:.3g}" if goal["aim"] else ""


def wanted(records: Iterable[Record]) -> list[tuple[str, Record]]:
    """The goals that there is a least for, and their work."""
    return [
        (record["work"], goal)
        for record in records
        for goal in record.get("goals", ())
        if goal["at_least"]
    ]


def summary(record: Record) -> str:
    """What came of a case, in a line."""
    if "refused" in record:
        return "refused: " + record["refused"]
    return "; ".join(f"{ratio(one)} of {peer(one)}" for one in record["goals"])


def amount(side: Record, measure: str) -> str:
    """A figure of a side."""
    value = side[measure]
    if measure in ("temporary", "peak", "bytes"):
        return f"{value / 1e6:,.0f} MB"
    if measure == "flops":
        return f"{value / 1e9:,.0f} G" if value >= 1e11 else f"{value / 1e9:.3g} G"
    return f"{value:.3g} s" if value >= 1.0 else f"{value * 1e3:.3g} ms"


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table as documents have it."""
    shown = [f"| {' | '.join(line)} |" for line in (head, *lines)]
    return "\n".join([shown[0], "|" + "---|" * len(head), *shown[1:]])


def notes(records: Iterable[Record]) -> list[str]:
    """The notes, each with what it is about."""
    about: dict[str, list[str]] = {}
    for record in records:
        if record["note"]:
            about.setdefault(record["note"], []).append(record["work"])
    return [f"{'; '.join(works)}: {note}" for note, works in about.items()]


def document(records: Sequence[Record], machine: Record) -> str:
    """What a document shows between its marks: where and when, both tables, and the notes."""
    listed = "\n".join(f"- {note}" for note in notes(records))
    every = f"Every side by itself:\n\n{markdown(SIDES_HEAD, sides(records))}"
    return f"{where(machine)}.\n\n{markdown(HEAD, rows(records))}\n\n{listed}\n\n{every}"


def brief(records: Iterable[Record], machine: Record) -> str:
    """What a document shows that has room for the ratios alone, of what there is a least for."""
    lines = [
        (
            work,
            peer(goal),
            ratio(goal),
            f"{goal['at_least']:.3g}",
        )
        for work, goal in wanted(records)
    ]
    return f"{where(machine)}.\n\n{markdown(('work', 'peer', 'ratio', 'wanted'), lines)}"


def put_into(text: str, content: str) -> str:
    """Replaces what stands between the marks of a document.

    Args:
        text: The document.
        content: What shall stand there.

    Returns:
        The new document.

    Raises:
        ValueError: if the marks are not there once each, in order.
    """
    before, begins, rest = text.partition(BEGINS)
    _, ends, after = rest.partition(ENDS)
    if not begins or not ends or BEGINS in after or ENDS in after:
        raise ValueError(f"a document needs {BEGINS} and then {ENDS}, once each")
    return f"{before}{BEGINS}\n{content}\n{ENDS}{after}"


def where(machine: Record) -> str:
    """The date, the machine and the versions in a line."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    small = "; small sizes, which say nothing about speed" if machine["quick"] else ""
    return (
        f"{machine['date']}, {machine['threads']} threads of {machine['device']}, {versions}; "
        f"{machine['runs']} runs in turns; load {machine['load']:.1f} before{small}"
    )


def picture(records: Iterable[Record], title: str) -> str:
    """The ratios of all goals as bars, as an SVG file.

    Args:
        records: The records of cases.
        title: What it shows.

    Returns:
        The file.
    """
    from xformer.training import figures  # loads matplotlib

    draw, height = bars(records)
    return figures.as_svg_file(draw, title, height)


def bars(records: Iterable[Record]) -> tuple[Any, float]:
    """What to draw, and how high: bars from 1, those on the right good, and a line at each goal."""
    goals = wanted(records)
    names = [f"{work}\n{peer(goal)}" for work, goal in goals]

    def draw(axes: Any, colors: Any) -> None:
        for place, (_, goal) in enumerate(goals):
            color = colors["first" if goal["met"] else "second"]
            axes.barh(place, goal["ratio"] - 1.0, left=1.0, color=color, height=0.6)
            least = goal["at_least"]
            axes.plot([least, least], [place - 0.42, place + 0.42], color=colors["ink"])
            end = max(goal["ratio"], least, 1.0)
            axes.annotate(
                f"{goal['ratio']:.2f}",
                (end, place),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=7,
            )
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.margins(x=0.12)
        axes.set_yticks(range(len(names)), names, fontsize=6)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.axvline(1.0, color=colors["ink"], linewidth=0.8)
        axes.set_xlabel("ratio (the line: wanted at least)", fontsize=8)
        axes.tick_params(axis="x", labelsize=7)
        axes.grid(visible=False, axis="y")
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0)

    return draw, 0.7 + 0.26 * len(goals)


def html(records: Sequence[Record], machine: Record) -> str:
    """A page that needs nothing beside itself.

    Args:
        records: The records of cases.
        machine: Where they were made.

    Returns:
        The file.
    """
    from xformer.training import figures

    goals = wanted(records)
    met = sum(goal["met"] for _, goal in goals)
    tone = "good" if met == len(goals) and goals else "bad"
    title = "xformer beside its peers"
    draw, height = bars(records)
    svg = figures.as_svg(draw, page.text(title), height)
    table = {f"{place}": row for place, row in enumerate(rows(records), 1)}
    each = {f"{place}": row for place, row in enumerate(sides(records), 1)}
    listed = "".join(f"<li>{page.text(note)}</li>" for note in notes(records))
    lines = [f"<p>{page.text(where(machine))}</p>"]
    parts = [
        page.header(title, f"{met} of {len(goals)} met", tone, lines),
        page.section("Ratios", page.figures([("peer's figure through xformer's", svg)])),
        page.section("All ratios", page.grid(HEAD, table)),
        page.section("Every side", page.grid(SIDES_HEAD, each)),
        page.section("Notes", f"<ul>{listed}</ul>" if listed else ""),
    ]
    return page.page(title, "benchmark", parts)
