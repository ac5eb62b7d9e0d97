"""A plan as text for people and as JSON for programs."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from xformer.plan.compilation import Bounds, Plan

_GIB = 2.0**30


def lines(plan: Plan) -> list[str]:
    """Writes a plan.

    Args:
        plan: The plan.

    Returns:
        Lines of text.
    """
    execution = plan.execution
    parts = f" in {plan.accumulation_steps} parts" if plan.accumulation_steps > 1 else ""
    written = [
        f"{'topology':12} {plan.topology.name}, {plan.topology.chips} chips",
        f"{'mesh':12} {mesh_text(plan)}",
        f"{'step':12} {plan.batch_size:,} rows{parts}, {plan.tokens:,} tokens; {execution.dtype}, "
        f"layers {execution.layers}, remat {execution.remat}",
        f"{'parameters':12} {plan.parameters:,}",
        "",
        *_memory_lines(plan),
        "",
        *_work_lines(plan),
    ]
    return [*written, "", *_collective_lines(plan)] if plan.collectives else written


def mesh_text(plan: Plan) -> str:
    """Names the mesh axes that split something, and their sizes."""
    sizes = [f"{axis} {size}" for axis, size in plan.mesh.items() if size > 1]
    return ", ".join(sizes) or "one device"


def as_json(plan: Plan) -> dict[str, Any]:
    """Describes a plan.

    Args:
        plan: The plan.

    Returns:
        A JSON object; bytes and operations are whole numbers, times are seconds.
    """
    described = dataclasses.asdict(plan)
    described["topology"] = plan.topology.name
    described["chips"] = plan.topology.chips
    described["hbm_bytes"] = plan.topology.hbm_bytes
    described["fits"] = plan.fits
    described["tokens"] = plan.tokens
    described["required"] = None if plan.required in (None, math.inf) else plan.required
    if plan.memory is not None:
        described["memory"]["needed"] = plan.memory.needed
    if plan.bounds is not None:
        described["bounds"]["step"] = plan.bounds.step
    for key, kinds in (("collectives", plan.collectives), ("least", plan.least)):
        for one, collective in zip(described[key], kinds, strict=True):
            one["wire_bytes"] = collective.wire_bytes
    return described


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligns columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    ]


def duration(seconds: float) -> str:
    """Writes a time with three digits."""
    return f"{seconds:.3g} s" if seconds >= 0.1 else f"{1000 * seconds:.3g} ms"


def _memory_lines(plan: Plan) -> list[str]:
    limit, state = plan.topology.hbm_bytes, f"{'state':12} {_gib(plan.state_bytes)}"
    memory = plan.memory
    if memory is None:
        wanted = "more" if plan.required in (None, math.inf) else f"{_gib(plan.required)}"
        return [
            "memory of a device",
            f"  {state}",
            f"  {'needed':12} {wanted} of {limit / _GIB:.2f} GiB: DOES NOT FIT",
        ]
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    return [
        "memory of a device",
        f"  {'arguments':12} {_gib(memory.arguments)}, of which the state {_gib(plan.state_bytes)}",
        f"  {'temporary':12} {_gib(memory.temporary)}",
        *([f"  {'peak':12} {_gib(memory.peak)}"] if memory.peak else []),
        *([f"  {'on the host':12} {_gib(memory.host)}"] if memory.host else []),
        f"  {'needed':12} {_gib(memory.needed)} of {limit / _GIB:.2f} GiB: {verdict}",
    ]


def _work_lines(plan: Plan) -> list[str]:
    ratio = plan.flops / (6 * plan.parameters * plan.tokens)
    again = f", {plan.recomputed / plan.flops:.1%} of them to recompute" if plan.recomputed else ""
    written = [
        f"operations of a step: {plan.flops:.4g}{again}",
        f"  {ratio:.3f} times 6 x parameters x tokens",
    ]
    if plan.bounds is None:
        return written
    chip, bounds = plan.topology.chip, plan.bounds
    kinds = {
        "compute": f"matrix products at {chip.flops_per_s / 1e12:,.0f} TFLOP/s a chip",
        "memory": f"each byte in and out once, at {chip.hbm_bytes_per_s / 1e9:,.0f} GB/s a chip",
        "links": f"collectives, at {chip.link_bytes_per_s / 1e9:,.0f} GB/s a chip",
        "network": f"between slices, at {chip.network_bytes_per_s / 1e9:,.3g} GB/s a chip",
    }
    speed = plan.tokens / bounds.step
    return [
        *written,
        "",
        f"a step takes at least {duration(bounds.step)}, the longest of",
        *_bound_lines(bounds, kinds),
        f"that is at most {speed:,.0f} tokens/s, {speed / plan.topology.chips:,.0f} on a chip",
    ]


def _bound_lines(bounds: Bounds, kinds: dict[str, str]) -> list[str]:
    return [
        f"  {kind:12} {duration(seconds):>9}  {kinds[kind]}"
        for kind, seconds in dataclasses.asdict(bounds).items()
        if seconds
    ]


def _collective_lines(plan: Plan) -> list[str]:
    head = ("collectives", "axes", "devices", "times", "array bytes", "bytes sent", "least")
    least = {(one.kind, one.axes): one for one in plan.least}
    rows = []
    for one in plan.collectives:
        needed = least.pop((one.kind, one.axes), None)
        rows.append(
            (
                f"  {one.kind}",
                one.axes,
                str(one.group),
                f"{one.count:,}",
                f"{one.array_bytes:,}",
                f"{one.wire_bytes:,.0f}",
                f"{needed.wire_bytes:,.0f}" if needed else "",
            )
        )
    for one in least.values():  # done in another way
        shown = (f"  {one.kind}", one.axes, str(one.group), "0", "0", "0")
        rows.append((*shown, f"{one.wire_bytes:,.0f}"))
    sums = [sum(one.wire_bytes for one in kinds) for kinds in (plan.collectives, plan.least)]
    return table([head, *rows, ("  together", "", "", "", "", *(f"{one:,.0f}" for one in sums))])


def _gib(size: int | float) -> str:
    return f"{size / _GIB:.3f} GiB"
