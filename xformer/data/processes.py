"""Child processes that end with their parent, however it ends."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with(parent_id: int) -> None:
    """Makes the kernel kill this process when its parent dies (Linux; elsewhere nothing happens).

    Args:
        parent_id: process id of the parent, which may have died before this call.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_id:
        os.kill(os.getpid(), signal.SIGKILL)
