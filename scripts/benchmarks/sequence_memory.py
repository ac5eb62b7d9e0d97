#!/usr/bin/env python
"""Memory of a device for one long row, whose tokens are split over more and more TPU chips.

The training step of BigBird-base is compiled for them ahead of time (`xformer plan`, quickly),
which takes no TPU, and a minute or more for each number of chips.

Examples:
  .venv/bin/python scripts/benchmarks/sequence_memory.py --svg docs/images/sequence_memory.svg
  .venv/bin/python scripts/benchmarks/sequence_memory.py --length 262144 --sides 4x4 4x8 8x8
"""

import argparse
from pathlib import Path

from xformer.configurables import load
from xformer.plan.compilation import Plan, measure
from xformer.plan.topology import Topology, avoid_accelerators
from xformer.training import figures

RUN = Path(__file__).parents[2] / "configs" / "runs" / "pretrain_bigbird_base.gin"
GIB = 2.0**30


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sides = ["1x1", "2x2", "2x4", "4x4", "4x8", "8x8"]
    parser.add_argument("--sides", nargs="+", default=sides, help="of slices of v5e")
    parser.add_argument("--length", type=int, default=65536, help="tokens of the row")
    parser.add_argument("--svg", type=Path, help="file for a picture")
    return parser.parse_args()


def main() -> None:
    """Plans every number of chips, and prints a table."""
    args = parse_arguments()
    avoid_accelerators()
    print("| `MeshConfig.sequence` | state and batch | temporary | needed |\n|---|---|---|---|")
    found: dict[int, Plan] = {}
    for sides in args.sides:
        topology = Topology.parse(f"v5e:{sides}")
        plan = plan_of(topology, args.length)
        if plan.memory is None:
            print(f"| {topology.chips} | | | does not fit |", flush=True)
            continue
        found[topology.chips] = plan
        sizes = (plan.memory.arguments, plan.memory.temporary, plan.memory.needed)
        cells = " | ".join(f"{size / GIB:.2f} GiB" for size in sizes)
        print(f"| {topology.chips} | {cells} |", flush=True)
    if args.svg:
        draw_to(args.svg, found, args.length)


def plan_of(topology: Topology, length: int) -> Plan:
    """Plans the step for one row, split over all chips."""
    bindings = [
        f"BigBirdConfig.max_position_embeddings={length}",
        "MeshConfig.fsdp=1",
        f"MeshConfig.sequence={topology.chips}",
        "Run.batch_size=1",
        'Execution.remat="full"',
    ]
    run = load(RUN, bindings).run
    return measure(run, topology, topology.devices(), length=length, quick=True)


def draw_to(path: Path, plans: dict[int, Plan], length: int) -> None:
    """Draws the memory over the number of chips."""
    memories = [plan.memory for plan in plans.values() if plan.memory]
    values = {
        "temporary": [memory.temporary / GIB for memory in memories],
        "state and batch": [memory.arguments / GIB for memory in memories],
    }
    draw = figures.lines(list(plans), values, "MeshConfig.sequence", "GiB of a device")
    title = f"Memory of a device for one row of {length:,} tokens, split over more and more chips"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(figures.as_svg_file(draw, title), encoding="utf-8")


if __name__ == "__main__":
    main()
