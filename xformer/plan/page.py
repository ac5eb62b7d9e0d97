"""A plan, or the trials of a sweep, as a page that needs nothing beside itself."""

import dataclasses
from collections.abc import Sequence

from xformer.plan import report
from xformer.plan.compilation import Plan
from xformer.plan.hlo import Collective
from xformer.plan.sweep import COLUMNS, Trial, cells
from xformer.training import page

_GIB = 2.0**30
_MOST_BARS = 12


def plan_page(plan: Plan, name: str, help_lines: Sequence[str] = ()) -> str:
    """Writes the page of a plan: memory, time and what is sent, as pictures and in figures.

    Args:
        plan: The plan.
        name: What was planned.
        help_lines: What would make it fit, if it does not.

    Returns:
        An HTML file.
    """
    fits = "fits" if plan.fits else "does not fit"
    mesh = page.text(f"{plan.topology.name}, {plan.topology.chips} chips: {report.mesh_text(plan)}")
    parts = [
        page.header(name, fits, "good" if plan.fits else "bad", [f"<p>{mesh}</p>"]),
        page.tiles(_headline(plan)),
        page.section("What it needs", page.figures(_pictures(plan))),
        page.section("To make it fit", _list(help_lines)),
        page.section("All figures", f"<pre>{page.text(chr(10).join(report.lines(plan)))}</pre>"),
    ]
    return page.page(name, "plan", parts)


def sweep_page(trials: Sequence[Trial], name: str) -> str:
    """Writes the page of a sweep: the trials that fit as bars, and all of them as a table.

    Args:
        trials: What was tried, the best first.
        name: What was planned.

    Returns:
        An HTML file.
    """
    fitting = [one for one in trials if one.plan is not None and one.plan.fits]
    said = f"{len(fitting)} of {len(trials)} fit" if fitting else "nothing fits"
    best = fitting[0] if fitting else None
    lines = [f"<p>the best: <code>{page.text(best.flags)}</code></p>"] if best else []
    rows = {str(place): cells(one) for place, one in enumerate(trials, 1)}
    refused = sorted({one.refusal for one in trials if one.refusal})
    parts = [
        page.header(name, said, "good" if best else "bad", lines),
        page.tiles(_headline(best.plan)) if best and best.plan else "",
        page.section("Tokens a second at most", page.figures(_speeds(fitting))),
        page.section("All trials", page.grid(COLUMNS, rows)),
        page.section("Refused", _list(refused)),
    ]
    return page.page(name, "plan", parts)


def _headline(plan: Plan) -> dict[str, str]:
    limit = plan.topology.hbm_bytes / _GIB
    needed = f"{plan.memory.needed / _GIB:.2f} of" if plan.memory else "more than"
    tiles = {
        "memory of a device": f"{needed} {limit:.2f} GiB",
        "rows of a step": f"{plan.batch_size:,}",
        "tokens of a step": f"{plan.tokens:,}",
        "parameters": f"{plan.parameters:,}",
    }
    if plan.bounds is None:
        return tiles
    step = f"{report.duration(plan.bounds.step)} ({plan.bounds.slowest})"
    speed = f"{plan.tokens / plan.bounds.step:,.0f}"
    return {"a step takes at least": step, "tokens/s at most": speed, **tiles}


def _pictures(plan: Plan) -> list[tuple[str, str]]:
    if plan.memory is None or plan.bounds is None:
        return []
    from xformer.training import figures  # loads matplotlib

    memory, limit = plan.memory, plan.topology.hbm_bytes
    parts = {
        "state": plan.state_bytes,
        "batch": memory.arguments - plan.state_bytes,
        "results": memory.outputs - memory.aliased,
        "temporary": memory.temporary,
    }
    gib = {label: size / _GIB for label, size in parts.items() if size > 0}
    most = f"what a program may use: {limit / _GIB:.2f} GiB"
    bounds = {
        kind: (seconds, report.duration(seconds))
        for kind, seconds in dataclasses.asdict(plan.bounds).items()
        if seconds
    }
    sent = {
        f"{one.kind}\n{one.axes} ({one.group})": (one.wire_bytes / 1e9, _beside_least(one, plan))
        for one in plan.collectives[:_MOST_BARS]
    }
    drawn = {
        "Memory of a device": figures.stack(gib, "GiB", (limit / _GIB, most)),
        "A step takes at least the longest of these": figures.bars(bounds, "seconds"),
    }
    if sent:
        drawn["What a device sends in a step"] = figures.bars(sent, "GB")
    tall = {"What a device sends in a step": 0.9 + 0.45 * len(sent)}
    return [
        (title, figures.as_svg(draw, page.text(title), tall.get(title, 2.4)))
        for title, draw in drawn.items()
    ]


def _beside_least(one: Collective, plan: Plan) -> str:
    least = [other for other in plan.least if (other.kind, other.axes) == (one.kind, one.axes)]
    beside = f", {one.wire_bytes / least[0].wire_bytes:.1f} of the least" if least else ""
    return f"{one.count:,} times{beside}"


def _speeds(fitting: Sequence[Trial]) -> list[tuple[str, str]]:
    from xformer.training import figures  # loads matplotlib

    bars = {}
    for one in fitting[:_MOST_BARS]:
        if one.plan is not None and one.plan.bounds is not None:
            mesh, rows, remat, *_ = cells(one)
            speed = one.plan.tokens / one.plan.bounds.step
            bars[f"{mesh}\n{rows} rows, {remat}"] = (speed, one.plan.bounds.slowest)
    if not bars:
        return []
    draw = figures.bars(bars, "tokens/s, and what takes longest")
    return [
        ("The best that fit", figures.as_svg(draw, "The best that fit", 0.9 + 0.45 * len(bars)))
    ]


def _list(lines: Sequence[str]) -> str:
    shown = "".join(f"<li>{page.text(line)}</li>" for line in lines)
    return f"<ul>{shown}</ul>" if shown else ""
