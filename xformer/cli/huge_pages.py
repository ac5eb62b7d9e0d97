"""Memory in huge pages, where programs run on CPUs.

XLA asks for the memory of a program at every step, and glibc gives it back to the system after
every step. Page by page, that takes a fifth of the CPU time of a training step of SqueezeBERT-base;
huge pages, which the system hands out 512 at once, take back two thirds of it. glibc must be told
before a process begins.
"""

import contextlib
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

_TUNABLES, _TUNABLE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
_ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_DEVICES = Path("/dev")
_ACCELERATORS = ("nvidia[0-9]*", "accel[0-9]*", "vfio/[0-9]*")


def use() -> None:
    """Starts this process again with huge pages, under its own number, if it has none yet.

    To be called first, by a process that is there for one command alone. Returns where nothing is
    to be gained: where JAX will compute on an accelerator, without glibc, where the system has no
    huge pages or has them for all, or where `GLIBC_TUNABLES` says something about them.
    """
    if platform.libc_ver()[0] != "glibc" or not _is_for_cpus() or not _are_for_the_asking():
        return
    if _TUNABLE in os.environ.get(_TUNABLES, "") or not sys.executable:
        return
    sys.stdout.flush()
    with contextlib.suppress(OSError):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], added(os.environ))


def added(environment: Mapping[str, str]) -> dict[str, str]:
    """Adds what tells glibc to use huge pages.

    Args:
        environment: Variables of a process to be.

    Returns:
        Those and that one.
    """
    told = environment.get(_TUNABLES)
    tunables = f"{told}:{_TUNABLE}=1" if told else f"{_TUNABLE}=1"
    return {**environment, _TUNABLES: tunables}


def _is_for_cpus() -> bool:
    """Whether JAX will compute on CPUs; asking JAX would take most of a second."""
    asked = os.environ.get("JAX_PLATFORMS", "")
    if asked:
        return asked.split(",")[0] == "cpu"
    return not any(found for name in _ACCELERATORS for found in _DEVICES.glob(name))


def _are_for_the_asking() -> bool:
    try:
        return "[madvise]" in _ENABLED.read_text()
    except OSError:
        return False
