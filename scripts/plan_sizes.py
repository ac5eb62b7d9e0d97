#!/usr/bin/env python
"""Plan many sizes of models for many accelerators, and show what came of it as tables and pictures.

`scaling` plans XGLM-7.5B and UMT5-xxl on more and more chips, with the same rows on each;
`published` plans every published size of the four families on a small TPU slice of two kinds.

Every plan is kept as JSON in the folder, as soon as it is made: interrupted and started again, this
goes on where it was. Remove a file, or the folder, to plan again. Compiling for TPUs takes no TPU,
but minutes for each plan, and a fifth of that with --quick.

Examples:
  .venv/bin/python scripts/plan_sizes.py scaling --quick --svg docs/images
  .venv/bin/python scripts/plan_sizes.py published
"""

import argparse
import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xformer.configurables import load
from xformer.files import write_atomic
from xformer.plan import report
from xformer.plan.apart import measure_apart
from xformer.plan.topology import Topology
from xformer.training import figures

CONFIGS = Path(__file__).parents[1] / "configs"
GIB = 2.0**30


@dataclass(frozen=True)
class Case:
    """One plan.

    Attributes:
        label: What it is called in tables and pictures.
        run: Run file without its ending.
        topology: What to compile for.
        bindings: What differs from the run file.
        size: File of the model's size below configs/models; the run's own by default.
        slices: Slices of the topology.
        length: Tokens of a row, for prepared corpora.
    """

    label: str
    run: str
    topology: str
    bindings: tuple[str, ...] = ()
    size: str | None = None
    slices: int = 1
    length: int | None = None

    @property
    def file_name(self) -> str:
        """The name of its file in the folder."""
        place = Topology.parse(self.topology, self.slices).name
        return f"{self.label} {place}.json".replace(" ", "_").replace(":", "_")


XGLM, UMT5 = "XGLM-7.5B", "UMT5-xxl"


def scaled(label: str, place: str, slices: int, rows: int, parts: int, **mesh: int) -> Case:
    """A plan of weak scaling."""
    run, length = {XGLM: ("pretrain_xglm_7.5b", 2048), UMT5: ("pretrain_umt5_xxl", 568)}[label]
    settings = {**{f"MeshConfig.{axis}": size for axis, size in mesh.items()}}
    settings |= {"Run.batch_size": rows, "MeshConfig.slices": slices}
    settings["Run.accumulation_steps"] = parts
    bindings = tuple(f"{key}={value}" for key, value in settings.items())
    return Case(label, run, place, bindings, slices=slices, length=length)


# A row of 2,048 tokens of XGLM a chip, 8 rows of 512 + 114 tokens of UMT5. XGLM is split four
# ways by tensor and over the rest of a slice by fsdp, as its run file has it; on 16 chips a step is
# in 4 parts, because 2 do not fit. UMT5 is split over 32 chips, and copied beyond.
SCALING = [
    scaled(XGLM, "v5e:4x4", 1, 16, 4, fsdp=4, tensor=4),
    scaled(XGLM, "v5e:8x8", 1, 64, 2, fsdp=16, tensor=4),
    scaled(XGLM, "v5e:16x16", 1, 256, 2, fsdp=64, tensor=4),
    scaled(XGLM, "v5e:16x16", 4, 1024, 2, fsdp=64, tensor=4),
    scaled(UMT5, "v5p:2x2x4", 1, 128, 1, fsdp=16),
    scaled(UMT5, "v5p:4x4x4", 1, 512, 1, fsdp=32),
    scaled(UMT5, "v5p:4x8x8", 1, 2048, 1, fsdp=32),
    scaled(UMT5, "v5p:8x8x16", 1, 8192, 1, fsdp=32),
]


def published() -> list[Case]:
    """Every published size on the smallest sensible slice of v5e, and on the smallest of v5p."""
    # Label, size, rows on a chip of v5e and of v5p, slice of v5e.
    sizes = [
        ("SqueezeBERT-base", "squeezebert/base", 128, 512, "1x1"),
        ("BigBird-base", "bigbird/base", 4, 16, "1x1"),
        ("BigBird-large", "bigbird/large", 4, 16, "1x1"),
        ("UMT5-small", "umt5/small", 8, 32, "1x1"),
        ("UMT5-base", "umt5/base", 8, 32, "2x2"),
        ("UMT5-xl", "umt5/xl", 8, 32, "4x4"),
        ("UMT5-xxl", "umt5/xxl", 8, 32, "4x8"),
        ("XGLM-564M", "xglm/564m", 1, 4, "2x2"),
        ("XGLM-1.7B", "xglm/1.7b", 1, 4, "2x2"),
        ("XGLM-2.9B", "xglm/2.9b", 1, 4, "2x4"),
        ("XGLM-4.5B", "xglm/4.5b", 1, 4, "4x4"),
        ("XGLM-7.5B", "xglm/7.5b", 1, 4, "4x4"),
    ]
    cases = []
    for kind in ("v5e", "v5p"):
        for label, size, small_rows, large_rows, sides in sizes:
            place, rows = (f"v5e:{sides}", small_rows)
            if kind == "v5p":
                place, rows = "v5p:2x2x1", large_rows
            run, length, more = PRETRAINING[size.partition("/")[0]]
            chips = Topology.parse(place).chips
            split = (f"MeshConfig.fsdp={chips}", f"Run.batch_size={rows * chips}")
            cases.append(Case(label, run, place, (*split, *more), size, length=length))
    return cases


# Family -> its run file, tokens of a row where the run file does not say, and what else is bound.
PRETRAINING = {
    "squeezebert": ("pretrain_squeezebert_base", None, ()),
    "bigbird": ("pretrain_bigbird_base", 4096, ('Execution.remat="full"',)),
    "umt5": ("pretrain_umt5_xxl", 568, ()),
    "xglm": (
        "pretrain_xglm_7.5b",
        2048,
        ("MeshConfig.tensor=1", "Run.accumulation_steps=1"),
    ),
}


def size_bindings(size: str) -> list[str]:
    """The settings of a model's size, as the command line would give them."""
    lines = (CONFIGS / "models" / f"{size}.gin").read_text(encoding="utf-8").splitlines()
    settings = [line.partition("=") for line in lines if not line.startswith(("#", "Run."))]
    return [f"{key.strip()}={value.strip()}" for key, equals, value in settings if equals]


def planned(case: Case, quick: bool) -> dict[str, Any]:
    """Makes a plan, or says why there is none."""
    size = size_bindings(case.size) if case.size else []
    run = load(CONFIGS / "runs" / f"{case.run}.gin", [*size, *case.bindings]).run
    topology = Topology.parse(case.topology, case.slices)
    try:
        return report.as_json(measure_apart(run, topology, length=case.length, quick=quick))
    except ValueError as error:  # a compiler that crashes, above all
        return {"topology": topology.name, "refusal": str(error)}


def kept(case: Case, quick: bool, folder: Path) -> dict[str, Any]:
    """Reads a plan that was made before, or makes and keeps it."""
    path = folder / case.file_name
    asked = {**json.loads(json.dumps(dataclasses.asdict(case))), "quick": quick}
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found.pop("asked") == asked:
            return found
    start = time.monotonic()
    found = planned(case, quick)
    write_atomic(path, json.dumps({"asked": asked, **found}, indent=1) + "\n")
    said = f"{case.file_name.removesuffix('.json')}: {time.monotonic() - start:.0f} s"
    print(said, file=sys.stderr, flush=True)
    return found


def scaling_rows(cases: list[Case], plans: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The table of weak scaling, its head first."""
    head = ("chips", "mesh", "rows", "needed", *BOUNDS, "tokens/s a chip", "without overlap")
    rows = [("model", *head)]
    for case, plan in zip(cases, plans, strict=True):
        if "refusal" in plan:
            rows.append(refused(case, plan, len(rows[0])))
            continue
        cells = (
            f"{plan['chips']:,}, {plan['topology']}",
            mesh_of(plan),
            rows_of(plan),
            needed(plan),
        )
        times = (seconds(plan, kind) for kind in BOUNDS)
        apart = sum((plan["bounds"] or {}).get(kind, 0.0) for kind in BOUNDS)
        together = plan["tokens"] / plan["chips"] / apart if apart else 0.0
        rows.append((case.label, *cells, *times, f"{rate(plan):,.0f}", f"{together:,.0f}"))
    return rows


def published_rows(cases: list[Case], plans: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The table of published sizes, its head first."""
    head = ("topology", "mesh", "rows x tokens", "needed", *BOUNDS, "tokens/s a chip")
    rows = [("model", "parameters", *head)]
    for case, plan in zip(cases, plans, strict=True):
        if "refusal" in plan:
            rows.append(refused(case, plan, len(rows[0])))
            continue
        tokens = " + ".join(
            f"{plan['rows'][side][0]:,}"
            for side in ("input_ids", "decoder_input_ids")
            if side in plan["rows"]
        )
        cells = (plan["topology"], mesh_of(plan), f"{rows_of(plan)} x {tokens}", needed(plan))
        times = (seconds(plan, kind) for kind in BOUNDS)
        size = f"{plan['parameters'] / 1e6:,.0f}M"
        rows.append((case.label, size, *cells, *times, f"{rate(plan):,.0f}"))
    return rows


def refused(case: Case, plan: dict[str, Any], width: int) -> tuple[str, ...]:
    """The row of a plan that could not be made."""
    said = (case.label, plan["topology"], plan["refusal"])
    return said + ("",) * (width - len(said))


BOUNDS = ("compute", "memory", "links", "network")


def mesh_of(plan: dict[str, Any]) -> str:
    """The axes of a plan's mesh that split something."""
    return ", ".join(f"{axis} {size}" for axis, size in plan["mesh"].items() if size > 1) or "-"


def rows_of(plan: dict[str, Any]) -> str:
    """The rows of a plan's step, and in how many parts they are computed."""
    parts = plan["accumulation_steps"]
    return f"{plan['batch_size']:,}" + (f" in {parts}" if parts > 1 else "")


def needed(plan: dict[str, Any]) -> str:
    """The memory of a device that a plan needs and has."""
    limit = f"{plan['hbm_bytes'] / GIB:.2f} GiB"
    if plan["memory"] is None:
        more = f"{plan['required'] / GIB:.2f}" if plan["required"] else "more"
        return f"{more} of {limit}: too much"
    return f"{plan['memory']['needed'] / GIB:.2f} of {limit}"


def seconds(plan: dict[str, Any], kind: str) -> str:
    """One of a plan's bounds of time."""
    bound = (plan["bounds"] or {}).get(kind)
    return report.duration(bound) if bound else "-"


def rate(plan: dict[str, Any]) -> float:
    """Tokens that a chip can do in a second, at most; 0 where the step does not fit."""
    return plan["tokens"] / plan["bounds"]["step"] / plan["chips"] if plan["bounds"] else 0.0


def markdown(rows: list[tuple[str, ...]]) -> str:
    """A table as documents have it."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def draw(folder: Path, cases: list[Case], plans: list[dict[str, Any]]) -> None:
    """Draws the bounds of each model over the number of chips."""
    for label in dict.fromkeys(case.label for case in cases):
        mine = [
            plan
            for case, plan in zip(cases, plans, strict=True)
            if case.label == label and plan.get("bounds")
        ]
        times = {kind: [plan["bounds"][kind] for plan in mine] for kind in BOUNDS}
        chip = mine[0]["topology"].partition(":")[0]
        picture = figures.lines(
            [plan["chips"] for plan in mine],
            times,
            f"chips of {chip.split()[-1]}",
            "seconds of a step, at least",
        )
        path = folder / f"weak_scaling_{label.lower()}.svg"
        write_atomic(path, figures.as_svg_file(picture, f"Weak scaling of {label}"))
        print(path, file=sys.stderr)


TABLES: dict[str, tuple[Callable[[], list[Case]], Callable]] = {
    "scaling": (lambda: SCALING, scaling_rows),
    "published": (published, published_rows),
}


def main() -> int:
    """Makes the plans that are missing, and prints the table of all, or of those until Ctrl-C."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--quick", action="store_true", help="as `xformer plan` has it")
    parser.add_argument("--out", type=Path, default=Path("runs/plans"), help="folder of the plans")
    parser.add_argument("--svg", type=Path, help="folder of pictures of `scaling`")
    args = parser.parse_args()
    if args.svg and args.table != "scaling":
        parser.error("--svg is for scaling")
    folder = args.out / f"{args.table}{'_quick' if args.quick else ''}"
    folder.mkdir(parents=True, exist_ok=True)
    make, write = TABLES[args.table]
    cases = make()
    plans: list[dict[str, Any]] = []
    with contextlib.suppress(KeyboardInterrupt):
        plans.extend(kept(case, args.quick, folder) for case in cases)
    print(markdown(write(cases[: len(plans)], plans)))
    if len(plans) < len(cases):
        print(f"interrupted: {len(plans)} of {len(cases)} plans", file=sys.stderr)
        return 130
    if args.svg:
        args.svg.mkdir(parents=True, exist_ok=True)
        draw(args.svg, cases, plans)
    return 0


if __name__ == "__main__":
    sys.exit(main())
