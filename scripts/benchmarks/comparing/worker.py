"""Processes that each hold one program, and run it when they are asked to."""

import contextlib
import dataclasses
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from comparing.case import Program, Setting
from xformer.cli.huge_pages import added

_LOG_LINES = 30
_PATIENCE_S = 3.0


class ProcessEnded(Exception):
    """A process ended before it was told to.

    Attributes:
        log: The last lines that it wrote.
    """

    def __init__(self, side: str, status: int | None, log: str) -> None:
        """Says which one."""
        super().__init__(f"the process of {side} ended early, with status {status}")
        self.log = log


class Worker:
    """A process of one side of a case, or of the machine's limits."""

    def __init__(
        self, script: Path, case: str, side: str, setting: Setting, *, huge_pages: bool = False
    ) -> None:
        """Starts the process and waits until its program is built.

        Args:
            script: The command, which calls `serve` where it is given `--worker`.
            case: Name of the case.
            side: Name of the side.
            setting: What to build it for.
            huge_pages: As `Case` has it.

        Raises:
            ProcessEnded: if the process ends.
        """
        self._side = side
        environment = _environment(setting, huge_pages=huge_pages)
        asked = {"case": case, "side": side, **dataclasses.asdict(setting)}
        slug = "".join(letter if letter.isalnum() else "_" for letter in f"{case}_{side}")
        self._log = setting.folder / f"{slug}.log"
        self._file = setting.folder / f"{slug}.npz"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(script), "--worker", json.dumps(asked, default=str)],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        try:
            self.built: dict[str, Any] = self._read()
        except BaseException:
            self.stop()
            raise

    def outputs(self) -> dict[str, np.ndarray]:
        """Computes what is compared."""
        self._ask("outputs", str(self._file))
        with np.load(self._file) as found:
            outputs = dict(found)
        self._file.unlink()
        return outputs

    def seconds(self, times: int = 1) -> float:
        """Runs the program once, and then some times.

        Args:
            times: How often it is timed; the first run is not.

        Returns:
            Seconds of one run.
        """
        return self._ask("run", times)["seconds"]

    def figures(self) -> dict[str, float]:
        """What the process knows by now: the program's figures, and its "peak" of memory."""
        return self._ask("figures")

    def stop(self) -> None:
        """Ends the process, whatever it does."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(timeout=_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _ask(self, *question: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(question), file=self._process.stdin, flush=True)
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        said = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        raise ProcessEnded(self._side, self._process.wait(), "\n".join(said[-_LOG_LINES:]))


def serve(program: Program, answers: TextIO) -> None:
    """Answers what comes on standard input, until it ends.

    Args:
        program: What to run.
        answers: Where the answers go.
    """

    def answer(**found: Any) -> None:
        print(json.dumps(found), file=answers, flush=True)

    answer(units=program.units, **program.figures)
    memory = Memory()
    for line in sys.stdin:
        what, *rest = json.loads(line)
        if what == "outputs":
            np.savez(rest[0], **program.outputs())
            answer()
        elif what == "run":
            program.run()  # the machine's memory and caches were another process's meanwhile
            began = time.perf_counter()
            for _ in range(rest[0]):
                program.run()
            answer(seconds=(time.perf_counter() - began) / rest[0])
        else:
            answer(peak=memory.peak(), **program.figures)


class Memory:
    """The most memory that this process, or its GPU, has held since this was made."""

    def __init__(self) -> None:
        """Begins to watch."""
        # What building took is forgotten, where Linux lets a process do so; of a GPU JAX does not.
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> int:
        """The bytes."""
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available() and torch.cuda.max_memory_allocated():
            return torch.cuda.max_memory_allocated()
        jax = sys.modules.get("jax")
        if jax is not None and jax.default_backend() != "cpu":
            return jax.devices()[0].memory_stats()["peak_bytes_in_use"]
        with contextlib.suppress(OSError):
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(1024 * int(one.split()[1]) for one in lines if one.startswith("VmHWM"))
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def use_threads(threads: int) -> None:
    """Lets this process use so many cores: every library starts as many threads by itself."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def _environment(setting: Setting, *, huge_pages: bool) -> dict[str, str]:
    """What decides threads and memory, and that all multiply as exactly and compile anew."""
    given = {
        "OMP_NUM_THREADS": str(setting.threads),
        "MKL_NUM_THREADS": str(setting.threads),
        "NPROC": str(setting.threads),  # XLA's
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_OFFLINE": "1",
    }
    if setting.dtype == "float32":  # as PyTorch's; GPUs take TensorFloat-32 else
        given["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
    if setting.platform == "cpu":
        given |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    kept = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    environment = kept | given
    return added(environment) if huge_pages and setting.platform == "cpu" else environment
