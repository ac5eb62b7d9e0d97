"""What to change where a step does not fit, the likeliest help first."""

import math

from xformer.plan.compilation import Plan
from xformer.training.config import Run

_GIB = 2.0**30


def advice(run: Run, plan: Plan) -> list[str]:
    """Says what would make a step smaller on each device.

    Args:
        run: The run.
        plan: Its plan, of a step that does not fit.

    Returns:
        Sentences that name the key to change.
    """
    execution, mesh, limit = run.execution, plan.mesh, plan.topology.hbm_bytes
    ways = math.prod(mesh[axis] for axis in run.rules.act_batch)
    rows = run.batch_size // run.accumulation_steps // ways
    found = []
    if plan.state_bytes > limit / 3:
        found.append(
            f"the state takes {plan.state_bytes / _GIB:.1f} GiB of each device: split it further "
            f"with MeshConfig.fsdp (now {mesh['fsdp']}), or let the optimizer keep less (Adafactor)"
        )
    if execution.remat in ("none", "minimal"):
        found.append(f'recompute more: Execution.remat = "full" (now "{execution.remat}")')
    if execution.attention == "xla" and mesh["sequence"] == 1 and execution.dtype != "float16":
        found.append('keep less of what attention computes: Execution.attention = "pallas"')
    if execution.dtype == "float32":
        found.append('halve what is kept of activations: Execution.dtype = "bfloat16"')
    if execution.layers == "loop":
        found.append('let layers share their memory: Execution.layers = "scan"')
    elif execution.remat != "offload":
        found.append('keep what enters the layers on the host: Execution.remat = "offload"')
    if rows > 1:
        found.append(
            f"compute fewer of the {rows} rows of a device at a time: Run.accumulation_steps = "
            f"{2 * run.accumulation_steps}, or a smaller Run.batch_size (now {run.batch_size})"
        )
    if rows == 1:
        found.append(
            "a device has one row already: split what is within it, with MeshConfig.tensor (now "
            f"{mesh['tensor']}) or MeshConfig.sequence (now {mesh['sequence']})"
        )
    found.append(f"take more chips, or such with more memory (now {plan.topology.name})")
    return found
