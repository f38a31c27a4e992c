"""Checkpoints of a run in training, written by a background thread."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

from mnist_ce.config import Config
from mnist_ce.runs.run_dir import RunDir
from mnist_ce.runs.train_state import Snapshot, TrainState, load_snapshot
from mnist_ce.system.errors import RunError, UsageError
from mnist_ce.system.text import one_line
from mnist_ce.training.steps import Step


class AsyncCheckpointer:
    """Writes a run's files, snapshots in a background thread. A context manager.

    Args:
        run: The run; None, in a process that is not the main one: nothing is written.
    """

    def __init__(self, run: RunDir | None) -> None:
        self.run = run
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="checkpointer")
        self._pending: Future[None] | None = None
        self._appended: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._executor.shutdown()  # finishes a write that has begun

    def is_busy(self) -> bool:
        """Whether the last snapshot is still being written.

        Raises:
            RunError: If it could not be written.
        """
        if self._pending is not None and self._pending.done():
            self.wait()
        return self._pending is not None

    def wait(self) -> None:
        """Wait until all rows and the last snapshot are written.

        Raises:
            RunError: If they could not be written.
        """
        futures = self._appended, self._pending
        self._appended = self._pending = None
        for future in futures:
            if future is not None:
                self._guard(future.result)

    def append(self, rows: str) -> None:
        """Append rows to `steps.csv` in the background, before any later snapshot.

        Raises:
            RunError: If the rows before could not be appended.
        """
        if self._appended is not None and self._appended.done():
            self._guard(self._appended.result)
        if self.run is not None:
            self._appended = self._executor.submit(self.run.append_steps, rows)

    def save(self, snapshot: Snapshot) -> None:
        """Write a snapshot in the background, after the one before.

        Raises:
            RunError: If the one before could not be written.
        """
        self.wait()
        if self.run is not None:
            self._pending = self._executor.submit(snapshot.write, self.run)

    def write(self, write: Callable[..., None], *arguments: Any) -> None:  # noqa: ANN401
        """Call a function that writes a file, now.

        Raises:
            RunError: If this file or the last snapshot could not be written.
        """
        self.wait()
        if self.run is not None:
            self._guard(write, *arguments)

    def _guard(self, write: Callable[..., None], *arguments: Any) -> None:  # noqa: ANN401
        try:
            write(*arguments)
        except OSError as error:
            path = self.run.path if self.run else "?"
            if self.run is None or not self.run.path.is_dir():
                raise RunError(
                    f"run folder {path} has vanished; nothing more can be saved in it"
                ) from None
            raise RunError(
                f"run folder {path} cannot be written: {one_line(error)}; what was saved "
                "before is intact: make room, then continue with --resume"
            ) from None


def load_progress(
    run: RunDir, step: Step, config: Config, num_batches: int
) -> tuple[dict[str, Any], TrainState] | None:
    """Read `resume.pt` and check that it fits the config; None for a run that has none yet."""
    if not run.resume_path.exists():
        if (record := run.read_record()) is not None and record.init:
            raise RunError(
                f"run {run.path} cannot be continued: it has no resume.pt; train a new one"
            )
        return None
    weights, buffers = step.average or step.parameters, step.buffers
    step_state, state = load_snapshot(run, weights, buffers)
    num_steps = (state.epoch - 1) * num_batches + state.batch
    is_averaged = bool(config.average.decay)
    if step_state["num_steps"] != num_steps or bool(step_state["average"]) != is_averaged:
        raise RunError(
            f"{run.resume_path} does not fit {run.config_path}: one of them was changed since the "
            "run was interrupted"
        )
    if num_steps > config.train.epochs * num_batches:
        raise UsageError(
            f"run {run.path} is past epoch {config.train.epochs} already; give more --epochs"
        )
    return step_state, state
