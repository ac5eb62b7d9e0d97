"""Several processes that train one model: how they meet, agree, and learn of each other's end.

`jax.distributed` connects them; the first process holds its coordination service, a table of
strings by name through which everything here goes. A process alone needs none of it: every
function then answers for the one process that there is.
"""

import atexit
import contextlib
import itertools
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
from jax._src.distributed import global_state
from jax.experimental import multihost_utils

_SHUTDOWN_TIMEOUT_S = 10
# How long the service is waited for at a time. It answers at once when what is waited for is there;
# in between, a process looks whether another one has failed.
_WAIT_S = 1.0
_FAILED = "xformer/failed"
_meetings = itertools.count()
_visits: Counter[str] = Counter()
_timeout_s = 300
_late = ""


class PeerError(ValueError):
    """Another process of the run has failed, or is late."""


@dataclass(frozen=True)
class Connection:
    """How the processes of a run find one another.

    Attributes:
        coordinator: "HOST:PORT" of the first process; "" asks JAX's cluster detection for all.
        process_count: Number of processes; 0 with no coordinator.
        process_index: Which of them this one is; -1 with no coordinator.
        heartbeat_s: Seconds without a sign of life after which a process counts as dead, and the
            others end.
        timeout_s: Seconds that a process waits for the others at every point where all must meet:
            at the start, around checkpoints, and at the end; while others write their parts of a
            checkpoint, at least 30 minutes.
    """

    coordinator: str = ""
    process_count: int = 0
    process_index: int = -1
    heartbeat_s: int = 60
    timeout_s: int = 300

    def __post_init__(self) -> None:
        """Checks the fields against each other.

        Raises:
            ValueError: naming the flag.
        """
        for key in ("heartbeat_s", "timeout_s"):
            if getattr(self, key) < 1:
                raise ValueError(f"--{key} must be at least 1, got {getattr(self, key)}")
        if not self.coordinator:
            if self.process_count or self.process_index != -1:
                raise ValueError("--process_count and --process_index need --coordinator HOST:PORT")
            return
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdecimal():
            raise ValueError(f"--coordinator must be HOST:PORT, got {self.coordinator!r}")
        if self.process_count < 1:
            raise ValueError(
                f"--coordinator needs --process_count of at least 1, got {self.process_count}"
            )
        if not 0 <= self.process_index < self.process_count:
            raise ValueError(
                f"--process_index must be in 0..{self.process_count - 1}, got {self.process_index}"
            )


def is_cluster() -> bool:
    """Whether the environment says that this is one of several processes of a job.

    Returns:
        True for more than one task of SLURM or Open MPI, or worker of a TPU slice; on TPU VMs
        whose environment does not tell, JAX's detection has to be asked for.
    """

    def several(name: str) -> bool:
        return os.environ.get(name, "1").isdecimal() and int(os.environ.get(name, "1")) > 1

    is_slurm_step = "SLURM_STEP_NODELIST" in os.environ and several("SLURM_NTASKS")
    workers = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    slices = several("MEGASCALE_NUM_SLICES")
    return is_slurm_step or several("OMPI_COMM_WORLD_SIZE") or len(workers) > 1 or slices


@contextlib.contextmanager
def connected(connection: Connection | None) -> Iterator[None]:
    """Within it, this process is one of several; must be entered before JAX sees a device.

    On leaving, the processes wait for one another. One that leaves with an error tells the others.

    Args:
        connection: How they find one another; None for a process alone.

    Yields:
        Nothing.

    Raises:
        PeerError: if the others cannot be reached, fail or are late.
    """
    global _timeout_s
    if connection is None:
        yield
        return
    _timeout_s = connection.timeout_s
    # It would take SIGTERM for itself until `StopNotice` does.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            connection.coordinator or None,
            connection.process_count or None,
            connection.process_index if connection.coordinator else None,
            initialization_timeout=connection.timeout_s,
            heartbeat_timeout_seconds=connection.heartbeat_s,
            shutdown_timeout_seconds=_SHUTDOWN_TIMEOUT_S,
            cluster_detection_method="deactivate" if connection.coordinator else None,
        )
    except (RuntimeError, ValueError) as error:
        where = connection.coordinator or "found by JAX's cluster detection"
        raise PeerError(
            f"the processes did not meet at the coordinator ({where}): {error}; check --coordinator"
            ", --process_count and --process_index, and that all were started"
        ) from error
    try:
        yield
        meet("end")
    except BaseException as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and (failure := _failure()):
            raise PeerError(f"another process has failed: {failure}") from error
        put(_FAILED, f"process {process_index()}: {str(error) or type(error).__name__}")
        # The others may be gone: leaving them then takes time, and may end in an abort, so it has
        # to wait until the error has been told.
        atexit.register(_leave)
        raise
    jax.distributed.shutdown()


def _leave() -> None:
    with contextlib.suppress(RuntimeError):
        jax.distributed.shutdown()


def process_count() -> int:
    """Number of processes, known before devices are."""
    return global_state.num_processes if global_state.client else 1


def process_index() -> int:
    """Which of them this one is, known before devices are."""
    return global_state.process_id if global_state.client else 0


def is_first() -> bool:
    """Whether this is the process that writes what one process writes."""
    return process_index() == 0


def meet(name: str, value: Any = None) -> list[Any]:
    """Waits until all processes have come to this point; all must come to it in the same order.

    Args:
        name: What the point is called in messages.
        value: JSON that the others see.

    Returns:
        The values of all processes, in their order.

    Raises:
        PeerError: if another process has failed (with its message), or has not come within
            `Connection.timeout_s` (naming it).
    """  # noqa: DOC502
    if process_count() == 1:
        return [value]
    return _gather(f"xformer/meeting/{next(_meetings)} {name}", name, value, _timeout_s)


def wait_for_all(place: str, name: str, at_least_s: int = 0) -> None:
    """Waits until all processes have come to a place, in any thread.

    Args:
        place: Which one; all come there equally often, to several places in any order.
        name: What it is called in messages.
        at_least_s: Seconds to wait for the others if `Connection.timeout_s` is less.

    Raises:
        PeerError: as `meet`.
    """  # noqa: DOC502
    if process_count() > 1:
        _visits[place] += 1
        there = f"xformer/place/{place}/{_visits[place]}"
        _gather(there, name, None, max(at_least_s, _timeout_s))


def _gather(place: str, name: str, value: Any, timeout_s: int) -> list[Any]:
    global _late
    if _late:  # to wait again, on the way out, would double the time
        raise PeerError(_late)
    client: Any = global_state.client
    client.key_value_set(f"{place}/{process_index()}", json.dumps(value))
    if client.key_value_increment(f"{place} arrived", 1) == process_count():
        put(f"{place} all", "")
    end = time.monotonic() + timeout_s
    while not _is_put_within(f"{place} all", _WAIT_S):
        if failure := get(_FAILED):
            raise PeerError(f"another process has failed: {failure}")
        if time.monotonic() > end:
            there = {
                int(key.rpartition("/")[2]) for key, _ in client.key_value_dir_get(f"{place}/")
            }
            late = sorted(set(range(process_count())) - there)
            if not late:  # one stopped between the two calls above
                break
            _late = f"processes {late} have not come to {name!r} within {timeout_s} s"
            raise PeerError(_late)
    found = {int(k.rpartition("/")[2]): v for k, v in client.key_value_dir_get(f"{place}/")}
    return [json.loads(found[index]) for index in range(process_count())]


def late_at_barrier(error: Exception) -> list[int]:
    """Which processes a barrier of the coordination service has waited for in vain.

    Args:
        error: What it raised.

    Returns:
        Their numbers; none if that was not the error.
    """
    _, _, named = str(error).partition("timed out task names:\n")
    return [int(line) for line in itertools.takewhile(str.isdecimal, named.splitlines())]


def of_first(name: str, value: Any) -> Any:
    """What the first process sees, for what every process must see alike.

    Args:
        name: What it is called in messages.
        value: JSON; that of the others is not used.

    Returns:
        The value of the first process.

    Raises:
        PeerError: as `meet`.
    """  # noqa: DOC502
    return meet(name, value if is_first() else None)[0]


def on_host(tree: Any) -> Any:
    """The values of arrays that devices of all processes hold together.

    Args:
        tree: Arrays; of several processes all must come here, with arrays of the whole mesh.

    Returns:
        The same tree of NumPy arrays, at every process.
    """
    if process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def get(key: str) -> str | None:
    """Reads what some process has `put`, or None; at once."""
    client: Any = global_state.client
    try:
        return client.key_value_try_get(key)
    except jax.errors.JaxRuntimeError as error:
        if "NOT_FOUND" not in str(error):
            raise
        return None


def _is_put_within(key: str, seconds: float) -> bool:
    """Waits until some process has `put` something, in the service rather than by asking often."""
    client: Any = global_state.client
    try:
        client.blocking_key_value_get(key, round(1000 * seconds))
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
            raise
        return False
    return True


def _failure() -> str | None:
    """What another process has said of its end, if the service can still be asked."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        return get(_FAILED)
    return None


def put(key: str, value: str) -> None:
    """Writes what all processes can `get`, unless one has written it before."""
    client: Any = global_state.client
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # there already, or the service is gone
        client.key_value_set(key, value)
