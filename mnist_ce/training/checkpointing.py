"""Checkpoints of a run in training, written by a background thread."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from mnist_ce.runs.run_dir import RunDir
from mnist_ce.runs.train_state import Snapshot
from mnist_ce.system.errors import RunError
from mnist_ce.system.files import one_line

__all__ = ["AsyncCheckpointer"]


class AsyncCheckpointer:
    """Writes a run's files, snapshots in the background; use it as a context manager.

    Args:
        run: Where to write; None: nowhere, in a process that is not the main one.
    """

    def __init__(self, run: RunDir | None) -> None:
        self.run = run
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self.pending: Future[None] | None = None

    def __enter__(self) -> AsyncCheckpointer:
        return self

    def __exit__(self, *error: object) -> None:
        self.worker.shutdown()  # waits: what was begun is written

    @property
    def is_busy(self) -> bool:
        """Whether the last snapshot is still being written.

        Raises:
            RunError: If it could not be written.
        """
        if self.pending is not None and self.pending.done():
            self.wait()
        return self.pending is not None

    def wait(self) -> None:
        """Wait until the last snapshot is on the disk.

        Raises:
            RunError: If it could not be written.
        """
        pending, self.pending = self.pending, None
        if pending is not None:
            self._guarded(pending.result)

    def save(self, snapshot: Snapshot) -> None:
        """Write a snapshot in the background, after the one before.

        Raises:
            RunError: If the one before could not be written.
        """
        self.wait()
        if self.run is not None:
            self.pending = self.worker.submit(snapshot.write, self.run)

    def write(self, write: Callable[..., None], *arguments: Any) -> None:  # noqa: ANN401
        """Write something now.

        Raises:
            RunError: If this or the last snapshot could not be written.
        """
        self.wait()
        if self.run is not None:
            self._guarded(write, *arguments)

    def _guarded(self, write: Callable[..., None], *arguments: Any) -> None:  # noqa: ANN401
        try:
            write(*arguments)
        except OSError as error:
            assert self.run is not None
            if not self.run.path.is_dir():
                raise RunError(
                    f"run folder {self.run.path} has vanished; nothing more can be saved in it"
                ) from None
            raise RunError(
                f"run folder {self.run.path} cannot be written: {one_line(error)}; what was saved "
                "before is intact: make room, then continue with --resume"
            ) from None
