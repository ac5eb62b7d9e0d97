"""Plans made in a process of their own, since compilers have faults that end their process."""

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from multiprocessing.connection import Connection
from typing import Any

import jax

from xformer.plan.compilation import Plan, measure
from xformer.plan.topology import Topology, avoid_accelerators
from xformer.training.config import Run


def measure_apart(
    run: Run,
    topology: Topology,
    *,
    gpu_target: str | None = None,
    length: int | None = None,
    quick: bool = False,
) -> Plan:
    """Compiles a run's training step for a topology, in another process.

    Args:
        run: The run; its data need not be here.
        topology: What to compile for.
        gpu_target: As `Topology.devices` has it.
        length: Tokens of a row, for prepared corpora that are not here.
        quick: Whether to leave out what takes the compiler long and changes little of a plan.

    Returns:
        What it needs, whether it fits or not.

    Raises:
        ModuleNotFoundError: if the compiler is not installed; says how to install it.
        OSError: if the description of a GPU cannot be read.
        ValueError: if the mesh does not divide the devices, the batch or an array, if the compiler
            refuses the topology or the program, or if it crashes.
        RuntimeError: if the process could not begin; it has said why.
        Exception: whatever else was raised there, with where it was as a note.
    """
    topology.check_compiler()
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    asked = (run, topology, gpu_target, length, quick)
    worker = context.Process(target=_work, args=(sender, *asked), daemon=True)
    worker.start()
    sender.close()
    found: Plan | Exception | None = None
    try:
        found = receiver.recv()
    except EOFError:
        worker.join()
    finally:
        worker.kill()  # it has nothing left to do
        worker.join()
    if isinstance(found, Exception):
        raise found
    if found is None:
        code = worker.exitcode or 0
        if code >= 0:  # compilers that crash end it by a signal
            raise RuntimeError(f"the process that compiles ended with code {code} before it began")
        raise ValueError(_crash(topology, signal.Signals(-code).name))
    return found


def _crash(topology: Topology, how: str) -> str:
    return (
        f"the compiler for {topology.chip.name} crashed on this program ({how}), a fault of its "
        "own that another program may not meet: change the rows of a device (Run.batch_size, "
        "Run.accumulation_steps), Execution.remat, or leave out dropout of attention"
    )


def _work(
    sender: Connection,
    run: Run,
    topology: Topology,
    gpu_target: str | None,
    length: int | None,
    quick: bool,
) -> None:
    """Sends a plan, or what was raised instead."""
    threading.Thread(
        target=_end_with, args=(multiprocessing.parent_process(),), daemon=True
    ).start()
    sys.stderr.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # where compilers that crash write for long
    avoid_accelerators()
    sender.send(_outcome(run, topology, gpu_target, length, quick))


def _outcome(
    run: Run, topology: Topology, gpu_target: str | None, length: int | None, quick: bool
) -> Plan | Exception:
    """A plan, or what was raised instead: only what ends the process is a crash."""
    try:
        return measure(run, topology, topology.devices(gpu_target), length=length, quick=quick)
    except (ValueError, OSError) as error:
        found: Exception = error
    except jax.errors.JaxRuntimeError as error:
        said = str(error).partition("\n")[0]
        found = ValueError(f"the compiler for {topology.chip.name} refuses this: {said}")
    except Exception as error:  # a fault of ours, told as it is: its class may not be sent
        found = RuntimeError("".join(traceback.format_exception(error)))
    return found


def _end_with(parent: Any) -> None:
    """Ends this process when the one that waits for it has ended: nobody would read the plan."""
    parent.join()
    os._exit(1)
