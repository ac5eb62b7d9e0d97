"""Drawing the curves of a run, and the bars of a plan.

A picture is drawn as a file of its own with fixed colours, or as SVG for a page, whose lines and
text take the page's colours so that it reads on light and on dark; or as a file of such an SVG,
which brings the colours along.
"""

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xformer.training import page

# Role -> fixed colour. In SVG the roles become CSS variables of the page.
COLORS = {role: light for role, (light, _) in page.COLORS.items()}
_CURVES = ("first", "second", "third")
_PARTS = (*_CURVES, "fourth")
# Stand-ins that survive matplotlib and are replaced in its SVG.
_STAND_INS = {role: f"#01010{number}" for number, role in enumerate(COLORS)}
_MAX_POINTS = 600

Records = Sequence[Mapping[str, Any]]
Draw = Callable[[Axes, Mapping[str, str]], None]


def points(records: Records, key: str) -> tuple[list[int], list[float]]:
    """Picks a curve out of records.

    Args:
        records: Records with "step".
        key: Name of the value; records without it, or with None for not finite, are left out.

    Returns:
        Steps and values, averaged in equal runs down to a number that a screen can show.
    """
    found = [(one["step"], float(one[key])) for one in records if one.get(key) is not None]
    if len(found) > _MAX_POINTS:
        size = math.ceil(len(found) / _MAX_POINTS)
        runs = [found[start : start + size] for start in range(0, len(found), size)]
        found = [(run[-1][0], sum(value for _, value in run) / len(run)) for run in runs]
    return [step for step, _ in found], [value for _, value in found]


def loss_curves(train: Records, validation: Records, unit: str) -> Draw:
    """Training and validation loss, with the unigram baseline where it is known.

    Args:
        train: Records of training steps.
        validation: Records of evaluations.
        unit: What the loss is measured in.

    Returns:
        What to draw.
    """

    def draw(axes: Axes, colors: Mapping[str, str]) -> None:
        if train:
            axes.plot(*points(train, "loss"), color=colors["first"], label="train")
        if validation:
            curve = points(validation, "loss")
            axes.plot(*curve, color=colors["second"], label="validation", marker="o", linestyle=":")
        unigram = [one["unigram_perplexity"] for one in validation if one.get("unigram_perplexity")]
        if unigram:
            height = math.log(unigram[-1])
            axes.axhline(height, color=colors["third"], linestyle="--", label="unigram baseline")
        axes.set_ylabel(f"loss ({unit})")
        _over_steps(axes)
        if train or validation:
            axes.legend(frameon=False, labelcolor=colors["ink"])

    return draw


def curves(records: Records, labels: Mapping[str, str], *, unit: str = "") -> Draw | None:
    """Values over the steps, from zero upwards.

    Args:
        records: Records with "step".
        labels: What each value is called, by its name in the records; at most three.
        unit: What the axis is called; a single curve's label by default.

    Returns:
        What to draw, or None if no record has one of the values.
    """
    found = {label: points(records, key) for key, label in labels.items()}
    if not any(steps for steps, _ in found.values()):
        return None

    def draw(axes: Axes, colors: Mapping[str, str]) -> None:
        for role, (label, curve) in zip(_CURVES, found.items(), strict=False):
            axes.plot(*curve, color=colors[role], label=label)
        axes.set_ylabel(unit or next(iter(found)))
        axes.set_ylim(bottom=0)
        _over_steps(axes)
        if len(found) > 1:
            axes.legend(frameon=False, labelcolor=colors["ink"])

    return draw


def score_curves(records: Records, labels: Mapping[str, str]) -> dict[str, Draw | None]:
    """The scores of evaluations, those of 0..100 apart from those of 0..1, a few in a figure.

    Args:
        records: Records with "step".
        labels: What each score is called, by its name in the records.

    Returns:
        What to draw, by title.
    """
    large = [key for key in labels if any((one.get(key) or 0.0) > 1.0 for one in records)]
    small = [key for key in labels if key not in large]
    found = {}
    for keys in (large, small):
        for start in range(0, len(keys), len(_CURVES)):
            chosen = {key: labels[key] for key in keys[start : start + len(_CURVES)]}
            title = ", ".join(chosen.values())
            found[title] = curves(records, chosen, unit="validation score")
    return found


def _over_steps(axes: Axes) -> None:
    axes.set_xlabel("step")
    axes.set_xlim(left=0)


def bars(values: Mapping[str, tuple[float, str]], unit: str) -> Draw:
    """Values as bars from zero to the right, the first on top.

    Args:
        values: The length of each bar and what is written at its end, by what it is called.
        unit: What the lengths are measured in.

    Returns:
        What to draw.
    """

    def draw(axes: Axes, colors: Mapping[str, str]) -> None:
        lengths = [length for length, _ in values.values()]
        drawn = axes.barh(list(values), lengths, color=colors["first"], height=0.6)
        written = [said for _, said in values.values()]
        axes.bar_label(drawn, written, padding=4, color=colors["ink"], fontsize=9)
        axes.set_xlim(0, 1.3 * max(lengths, default=0.0) or 1.0)
        axes.invert_yaxis()
        _lying(axes, unit)

    return draw


def stack(parts: Mapping[str, float], unit: str, limit: tuple[float, str]) -> Draw:
    """Parts of a sum, one behind the other, beside a limit.

    Args:
        parts: The parts, at most four, by what they are called.
        unit: What they are measured in.
        limit: What the sum must not be greater than, and what that is called.

    Returns:
        What to draw.
    """

    def draw(axes: Axes, colors: Mapping[str, str]) -> None:
        start = 0.0
        for role, (label, size) in zip(_PARTS, parts.items(), strict=False):
            said = f"{label} {size:.3g}"
            axes.barh([""], [size], left=start, color=colors[role], height=0.5, label=said)
            start += size
        axes.axvline(limit[0], color=colors["ink"], linestyle="--", label=limit[1])
        axes.set_xlim(0, 1.08 * max(start, limit[0]))
        axes.set_ylim(-0.6, 1.4)
        _lying(axes, unit)
        axes.legend(frameon=False, labelcolor=colors["ink"], loc="upper left", ncols=2, fontsize=9)

    return draw


def _lying(axes: Axes, unit: str) -> None:
    axes.set_xlabel(unit)
    axes.grid(visible=False, axis="y")
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)


def lines(
    places: Sequence[int], labels: Mapping[str, Sequence[float]], where: str, unit: str
) -> Draw:
    """Values over places that double or so from one to the next.

    Args:
        places: Where the values are.
        labels: The values at all places, at most four, by what they are called; those that are
            nowhere more than zero are left out.
        where: What the places are.
        unit: What the values are measured in.

    Returns:
        What to draw.
    """

    def draw(axes: Axes, colors: Mapping[str, str]) -> None:
        for role, (label, values) in zip(_PARTS, labels.items(), strict=False):
            if any(values):
                axes.plot(places, values, color=colors[role], label=label, marker="o")
        axes.set_xscale("log", base=2)
        axes.set_xticks(places, [f"{place:,}" for place in places])
        axes.minorticks_off()
        axes.set_xlabel(where)
        axes.set_ylabel(unit)
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, labelcolor=colors["ink"])

    return draw


def as_png(draw: Draw) -> bytes:
    """Draws a picture of its own, on white."""
    return _render(draw, COLORS, (8.0, 4.5), {"format": "png", "dpi": 150, "facecolor": "white"})


def as_svg(draw: Draw, title: str, height: float = 3.1) -> str:
    """Draws an SVG element whose colours are the page's `--<role>` variables.

    Args:
        draw: What to draw.
        title: What it shows, for those who do not see it; no markup.
        height: Of a width of 5.

    Returns:
        The element, as wide as its place on the page.
    """
    plain = {"format": "svg", "transparent": True}
    text = _render(draw, _STAND_INS, (5.0, height), plain).decode()
    svg = text[text.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r' height="[^"]*"', "", svg, count=1))
    for role, color in _STAND_INS.items():
        svg = svg.replace(color, f"var(--{role})")
    # Text falls back to black where a style names no colour.
    return svg.replace("<svg", f'<svg role="img" aria-label="{title}" fill="var(--ink)"', 1)


def as_svg_file(draw: Draw, title: str, height: float = 3.1) -> str:
    """Draws an SVG file that reads on light and on dark, whatever it is shown on.

    Args:
        draw: What to draw.
        title: What it shows, for those who do not see it; no markup.
        height: Of a width of 5.

    Returns:
        The file.
    """
    light, dark = page.color_style(dark=False), page.color_style(dark=True)
    style = f"svg {{ {light} }} @media (prefers-color-scheme: dark) {{ svg {{ {dark} }} }}"
    svg = as_svg(draw, title, height)
    end = svg.index(">") + 1
    return f"{svg[:end]}\n<style>{style}</style>{svg[end:]}"


def _render(
    draw: Draw, colors: Mapping[str, str], size: tuple[float, float], options: Mapping[str, Any]
) -> bytes:
    ink, grid = colors["ink"], colors["grid"]
    style: dict[Any, Any] = {
        "font.size": 10,
        "font.family": "sans-serif",
        "text.color": ink,
        "axes.labelcolor": ink,
        "axes.edgecolor": grid,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": grid,
        "xtick.color": grid,
        "ytick.color": grid,
        "xtick.labelcolor": ink,
        "ytick.labelcolor": ink,
        "lines.linewidth": 1.6,
        "lines.markersize": 4,
        "svg.fonttype": "none",
        "svg.hashsalt": "xformer",
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        draw(axes, colors)
        buffer = io.BytesIO()
        figure.savefig(buffer, **options)
    return buffer.getvalue()
