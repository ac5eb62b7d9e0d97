"""The report of a run: one HTML page that needs nothing beside itself, and a picture of the loss.

It reads what the run folder holds, so that it can be written for a run that goes on or has failed.
"""

import json
import re
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xformer.files import write_atomic
from xformer.training import page
from xformer.training.arrays import ARRAYS, read_arrays
from xformer.training.console import duration, task_scores
from xformer.training.runlog import read_metrics, read_samples

REPORT = "report.html"
LOSS_PICTURE = "loss.png"

Records = list[dict[str, Any]]


def write_report(folder: str | Path) -> Path:
    """Writes `report.html` and `loss.png` into a run folder.

    Args:
        folder: Run folder, of a run in any state.

    Returns:
        The page.

    Raises:
        FileNotFoundError: if it is no run folder.
        OSError: if it cannot be written.
        ValueError: if the log is damaged.
    """
    from xformer.training import figures  # loads matplotlib

    folder = Path(folder)
    records = read_metrics(folder)
    train = [one for one in records if one["kind"] == "train"]
    validation = [one for one in records if one["kind"] == "validation"]
    events = [one for one in records if one["kind"] == "event"]
    status = _read_json(folder / "run.json")
    config = _read_text(folder / "config.gin")
    operative = _read_text(folder / "operative.gin")
    scored = "examples" if any("examples" in one for one in records) else "tokens"
    loss = figures.loss_curves(train, validation, f"mean over {scored}")
    write_atomic(folder / LOSS_PICTURE, figures.as_png(loss))
    drawn = {
        "Loss": loss,
        **figures.score_curves(validation, _score_labels(validation)),
        "Throughput": figures.curves(train, {f"{scored}_per_s": f"{scored} per second"}),
        "Time not spent computing": figures.curves(
            train,
            {
                "input_wait_fraction": "waiting for input",
                "checkpoint_fraction": "checkpoints",
                "log_fraction": "logging",
            },
            unit="share of the time",
        ),
        "Learning rate": figures.curves(train, {"learning_rate": "learning rate"}),
        "Gradient norm": figures.curves(train, {"gradient_norm": "gradient norm"}),
    }
    curves = [
        (title, figures.as_svg(draw, page.text(title))) for title, draw in drawn.items() if draw
    ]
    name = folder.resolve().name
    sections = [
        _header(name, status, records),
        page.tiles(_headline(train, validation, _total_steps(operative or config), scored)),
        page.section("Curves", page.figures(curves)),
        page.section("Sources", _sources(train)),
        page.section("Validation by source", _validated_sources(validation, scored)),
        page.section("Samples", _samples(read_samples(folder))),
        page.section("Events", _events(events)),
        page.section("State on the devices", _arrays(_read_json(folder / ARRAYS))),
        page.section("Configuration", _config(config, operative)),
        page.section("Provenance", page.table(_flat(_read_json(folder / "provenance.json")))),
    ]
    write_atomic(folder / REPORT, page.page(name, "run", sections))
    return folder / REPORT


# Reading: a file that is not there yet is nothing to show.


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(_read_text(path) or "{}")
    except ValueError:
        return {"unreadable": path.name}
    return found if isinstance(found, dict) else {"unreadable": path.name}


def _total_steps(config: str) -> int | None:
    found = re.search(r"^Run\.steps = (\d+)$", config, re.MULTILINE)
    return int(found[1]) if found else None


# Content: label -> what the page says. Everything from a file goes through `page.text`.


def _headline(
    train: Records, validation: Records, total: int | None, scored: str
) -> dict[str, str]:
    tiles: dict[str, str] = {}
    if train:
        last = train[-1]
        tiles["steps"] = f"{last['step']:,}" + (f" / {total:,}" if total else "")
        tiles[scored] = _number(last.get(scored), "{:,}")
        tiles["train loss"] = _number(last.get("loss"), "{:.4f}")
        if "perplexity" in last:
            tiles["train perplexity"] = _number(last["perplexity"], "{:,.2f}")
        speeds = [one[f"{scored}_per_s"] for one in train if one.get(f"{scored}_per_s")]
        if speeds:
            tiles[f"{scored}/s (median)"] = f"{statistics.median(speeds):,.0f}"
        if last.get("skipped"):
            tiles["steps skipped, not finite"] = f"{last['skipped']:,}"
    for when, one in zip(("before", "after"), validation[:1] + validation[1:][-1:], strict=False):
        scores = {"perplexity": "{:,.2f}"} if "perplexity" in one else {}
        scores |= {key: "{:,.4f}" for key in _score_labels([one])}
        for key, form in scores.items() or {"loss": "{:.4f}"}.items():
            tiles[f"validation {_label(key)} {when}"] = _number(one.get(key), form)
    unigram = [one["unigram_perplexity"] for one in validation if one.get("unigram_perplexity")]
    if unigram:
        tiles["unigram perplexity"] = f"{unigram[-1]:,.2f}"
    return tiles


def _score_labels(validation: Records) -> dict[str, str]:
    """What the scores of a task are called, by their names in the records."""
    return {key: _label(key) for key in task_scores(validation[-1])} if validation else {}


def _label(key: str) -> str:
    return key.replace("_", " ")


def _number(value: Any, form: str) -> str:
    return form.format(value) if isinstance(value, int | float) else "not finite"


def _header(name: str, status: Mapping[str, Any], records: Records) -> str:
    state = str(status.get("status", "unknown"))
    times = [one["time"] for one in records if "time" in one]
    span = f"{_when(times[0])}, {duration(max(times) - min(times))} from first to last record"
    lines = [f"<p>{span if times else 'no records yet'}</p>"]
    if status.get("error"):
        lines.append(f'<p class="error">{page.text(status["error"])}</p>')
    return page.header(name, state, _TONES.get(state, ""), lines)


_TONES = {"finished": "good", "running": "busy", "failed": "bad", "preempted": "idle"}


def _sources(train: Records) -> str:
    """What a run has read of each corpus of a mixture."""
    sources = train[-1].get("sources", {}) if train else {}
    rows = {
        name: (f"{one['rows']:,}", f"{one['share']:.2%}", f"{one['epochs']:,.3f}")
        for name, one in sources.items()
    }
    return page.grid(("rows read", "share of rows", "epochs"), rows)


def _validated_sources(validation: Records, scored: str) -> str:
    """What each corpus of a mixture costs, at the first evaluation and at the last."""
    mixed = [one["sources"] for one in validation if "sources" in one]
    rows = {}
    for name, last in mixed[-1].items() if mixed else ():
        losses = (one.get(name, {}).get("loss") for one in (mixed[0], mixed[-1]))
        rows[name] = (f"{last[scored]:,.0f}", *(_number(loss, "{:.4f}") for loss in losses))
    return page.grid((scored, "loss before", "loss after"), rows)


def _arrays(found: Mapping[str, Any]) -> str:
    """How the mesh splits every array of the state."""
    rows = read_arrays(found)
    if not rows:
        return ""
    mesh = " ".join(f"{axis}={size}" for axis, size in found["mesh"].items())
    total, device = sum(row.total_bytes for row in rows), sum(row.device_bytes for row in rows)
    whole = sum(row.device_bytes for row in rows if row.is_whole)
    said = f"{mesh}: {total:,} bytes, {device:,} on each device, {whole:,} of them whole on all"
    cells = {
        row.path: (
            " x ".join(map(str, row.shape)),
            ", ".join(row.axes),
            "whole" if row.is_whole else ", ".join(row.partition),
            f"{row.device_bytes:,}",
        )
        for row in rows
    }
    table = page.grid(("shape", "axes", "split over", "bytes on a device"), cells)
    return f"<details><summary>{page.text(said)}</summary>{table}</details>"


def _samples(samples: Records) -> str:
    if not samples:
        return ""
    shown = [
        f"<blockquote><b>{page.text(one['prompt'])}</b>{page.text(one['continuation'])}</blockquote>"
        for one in samples
    ]
    return f"<p>After step {samples[0]['step']:,}; the prompt is bold.</p>{''.join(shown)}"


def _events(events: Records) -> str:
    rows = []
    for one in events:
        notes = {key: value for key, value in one.items() if key not in _EVENT_KEYS}
        said = ", ".join(f"{key}: {value}" for key, value in notes.items())
        cells = (_when(one.get("time", 0)), f"{one['step']:,}", one.get("event", ""), said)
        rows.append("".join(f"<td>{page.text(cell)}</td>" for cell in cells))
    head = "<tr><th>time</th><th>step</th><th>event</th><th></th></tr>"
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    table = f'<table class="events">{head}{body}</table>'
    return f'<div class="scroll">{table}</div>' if rows else ""


_EVENT_KEYS = ("kind", "event", "step", "time")


def _config(config: str, operative: str) -> str:
    asked = f"<pre>{page.text(config)}</pre>" if config else ""
    if operative:
        complete = f"<pre>{page.text(operative)}</pre>"
        asked += f"<details><summary>With all defaults</summary>{complete}</details>"
    return asked


def _flat(value: Any, path: str = "") -> dict[str, str]:
    """Turns nested JSON values into path -> text."""
    if isinstance(value, dict) and value:
        found: dict[str, str] = {}
        for key, one in value.items():
            found |= _flat(one, f"{path}.{key}" if path else str(key))
        return found
    if isinstance(value, list) and all(isinstance(one, str | int | float) for one in value):
        return {path: ", ".join(map(str, value))}
    return {path: value if isinstance(value, str) else json.dumps(value)} if path else {}


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
