"""The files of a run in training, written by a background thread."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

from mnist_ce.runs.run_dir import RunDir
from mnist_ce.runs.train_state import Snapshot
from mnist_ce.system.errors import RunError
from mnist_ce.system.text import one_line

APPEND_SECONDS = 1.0  # between two writes of rows


class AsyncCheckpointer:
    """Writes a run's files, rows and snapshots in a background thread. A context manager.

    Every method raises a RunError for a write that has failed since the last call, once for each.
    Without a run, in a process that is not the main one, nothing is written.
    """

    def __init__(self, run: RunDir | None) -> None:
        self.run = run
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="checkpointer")
        self._writes: deque[Future[None]] = deque()  # whose errors are not raised yet
        self._snapshot: Future[None] | None = None
        self._rows: list[str] = []  # to be appended
        self._appended_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._executor.shutdown()  # finishes a write that has begun

    def is_busy(self) -> bool:
        self._raise_errors(wait=False)
        return self._snapshot is not None and not self._snapshot.done()

    def append(self, row: str) -> None:
        """Append a row to `steps.csv`, at most once a second and before any later write."""
        self._raise_errors(wait=False)
        self._rows.append(row)
        if time.monotonic() - self._appended_at >= APPEND_SECONDS:
            self._append_rows()

    def save(self, snapshot: Snapshot) -> None:
        self.wait()
        self._snapshot = self._submit(snapshot.write, self.run)

    def write(self, write: Callable[..., None], *arguments: Any) -> None:  # noqa: ANN401
        self.wait()
        self._submit(write, *arguments)
        self.wait()

    def wait(self) -> None:
        self._append_rows()
        self._raise_errors(wait=True)

    def _append_rows(self) -> None:
        rows, self._rows = "".join(self._rows), []
        self._appended_at = time.monotonic()
        if rows and self.run is not None:
            self._submit(self.run.append_steps, rows)

    def _submit(self, write: Callable[..., None], *arguments: Any) -> Future[None] | None:  # noqa: ANN401
        if self.run is None:
            return None
        self._writes.append(self._executor.submit(write, *arguments))
        return self._writes[-1]

    def _raise_errors(self, *, wait: bool) -> None:
        while self._writes and (wait or self._writes[0].done()):
            error = self._writes.popleft().exception()
            if isinstance(error, OSError) and self.run is not None:
                path = self.run.path
                if not path.is_dir():
                    raise RunError(
                        f"run folder {path} has vanished; nothing more can be saved in it"
                    ) from None
                raise RunError(
                    f"run folder {path} cannot be written: {one_line(error)}; what was saved "
                    "before is intact: make room, then continue with --resume"
                ) from None
            if error is not None:
                raise error
