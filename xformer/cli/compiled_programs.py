"""Programs that were compiled before, kept in a folder of the user's own.

A kept program is machine code: whoever can write it runs what they like as whoever reads it. So the
folder must belong to the user alone, and has a part for each kind of processor.
"""

import contextlib
import hashlib
import os
import platform
import stat
import sys
from pathlib import Path

import jax

LARGEST = 10 * 2**30
"""Bytes that are kept; those that were used last."""


def keep() -> None:
    """Lets JAX take programs from the folder that it compiled before, and put others there.

    The folder is `xformer/compiled` in `$XDG_CACHE_HOME`, or in `~/.cache`. What JAX is told itself
    comes first: `JAX_COMPILATION_CACHE_DIR` names another folder, and
    `JAX_ENABLE_COMPILATION_CACHE=false` keeps nothing. A folder that others may read or write is
    not used, and stderr says so.
    """
    told = jax.config.values
    if told["jax_compilation_cache_dir"] or not told["jax_enable_compilation_cache"]:
        return
    folder = Path("~/.cache")
    try:
        folder = _folder()
        # Of those above, too, none may be made that others could put another folder into.
        for part in (folder.parent.parent, folder.parent, folder):
            part.mkdir(mode=0o700, parents=True, exist_ok=True)
        fault = _fault(folder)
    except (OSError, RuntimeError) as error:  # the latter of users who have no home
        fault = getattr(error, "strerror", None) or str(error)
    if fault:
        print(f"{folder}: {fault}; programs are compiled anew", file=sys.stderr)
        return
    jax.config.update("jax_compilation_cache_max_size", LARGEST)
    jax.config.update("jax_compilation_cache_dir", str(folder))


def _folder() -> Path:
    parent = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    processor = hashlib.sha256(_processor().encode()).hexdigest()[:12]
    return Path(parent) / "xformer" / "compiled" / processor


def _processor() -> str:
    """What tells apart processors that cannot run each other's programs."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    return f"{platform.machine()} {platform.processor()} {platform.node()}"


def _fault(folder: Path) -> str:
    """Why programs in a folder are not to be trusted; empty if they are."""
    found = folder.stat()
    if found.st_uid != os.geteuid():
        return "belongs to another user"
    if stat.S_IMODE(found.st_mode) & 0o077:
        return "others may use it (chmod 700)"
    return "" if os.access(folder, os.W_OK | os.X_OK) else "cannot be written"
