"""The folder of a run: its lock, its status and its resolved config."""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from xformer.files import write_atomic

RUNNING, PREEMPTED, FAILED, FINISHED = "running", "preempted", "failed", "finished"


@contextlib.contextmanager
def naming_run_folder(folder: Path) -> Iterator[None]:
    """Within it, an error of the file system says what was being done and which key to change.

    Args:
        folder: The run folder.

    Yields:
        Nothing.

    Raises:
        OSError: with the errno of the original one.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        what = f"cannot write the run's records in {folder}: {reason}"
        advice = "free space, or set Run.folder to a folder that can be written"
        raise OSError(error.errno, f"{what}; {advice}") from error


class RunFolder:
    """A run folder held by this process; a context manager that lets go of it on leaving.

    Of several processes the first one holds it and writes; that the others write has no effect.
    """

    def __init__(self, path: str | Path) -> None:
        """Names the folder; nothing is touched before entering.

        Args:
            path: The folder, `Run.folder`.
        """
        self.path = Path(path)
        self._lock: int | None = None

    def __enter__(self) -> "RunFolder":
        """Creates the folder and takes its lock, which a dead process cannot keep.

        Returns:
            Itself.

        Raises:
            OSError: if the folder cannot be created or written.
            ValueError: if another run holds it.
        """
        from xformer import distributed  # loads JAX, which the log does without

        if not distributed.is_first():
            return self
        with naming_run_folder(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            self._lock = None
            raise ValueError(
                f"another process is training in {self.path}; wait for it, or change Run.folder"
            ) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Lets go of the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def tokenizer(self) -> Path:
        """Where the copy of the tokenizer is."""
        return self.path / "tokenizer"

    @property
    def config(self) -> Path:
        """The resolved config."""
        return self.path / "config.gin"

    def read_status(self) -> dict[str, Any]:
        """What `write_status` wrote last; empty for a new folder."""
        return self._read_json("run.json")

    def write_status(self, status: str, saved_step: int, **details: Any) -> None:
        """Records where the run stands.

        Args:
            status: `RUNNING`, `PREEMPTED`, `FAILED` or `FINISHED`.
            saved_step: Newest step that has a complete checkpoint, recorded as "step"; 0 for none.
            **details: JSON values to record beside them.
        """
        record = {"status": status, "step": saved_step, "time": time.time(), **details}
        self.write_texts({"run.json": json.dumps(record, indent=1) + "\n"})

    def write_provenance(self, origin: dict[str, Any]) -> None:
        """Records where this process's part of the run comes from; earlier parts are kept.

        Args:
            origin: JSON values, as `xformer.training.provenance` gives them.
        """
        before = self._read_json("provenance.json")
        earlier = before.pop("earlier", []) + ([before] if before else [])
        text = json.dumps({**origin, "earlier": earlier}, indent=1) + "\n"
        self.write_texts({"provenance.json": text})

    def _read_json(self, name: str) -> dict[str, Any]:
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{self.path / name} is damaged ({error}); remove it if the checkpoints are those "
                "of this run, or use another Run.folder"
            ) from error

    def write_texts(self, texts: dict[str, str]) -> None:
        """Writes small text files by name, each atomically."""
        from xformer import distributed  # loads JAX, which the log does without

        if not distributed.is_first():
            return
        with naming_run_folder(self.path):
            for name, text in texts.items():
                write_atomic(self.path / name, text)
