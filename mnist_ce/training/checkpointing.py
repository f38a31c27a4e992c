"""Checkpoints of a run in training: written by a background thread, and read to continue it."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

from mnist_ce.config import Config
from mnist_ce.runs.records import RunRecord
from mnist_ce.runs.run_dir import RunDir
from mnist_ce.runs.train_state import Snapshot, TrainState, load_snapshot
from mnist_ce.system.distributed import from_main
from mnist_ce.system.errors import RunError, UsageError
from mnist_ce.system.text import one_line
from mnist_ce.training.metadata import config_tables, environment_diff, merge_resumed
from mnist_ce.training.steps import Step

logger = logging.getLogger(__name__)

APPEND_SECONDS = 1.0  # between two writes of rows


class AsyncCheckpointer:
    """Writes a run's files, rows and snapshots in a background thread. A context manager.

    Every method raises a RunError for a write that has failed since the last call, once for each.

    Args:
        run: The run; None, in a process that is not the main one: nothing is written.
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
        """Whether the last snapshot is still being written."""
        self._raise_errors(wait=False)
        return self._snapshot is not None and not self._snapshot.done()

    def append(self, row: str) -> None:
        """Append a row to `steps.csv`, at most once a second and before any later write."""
        self._raise_errors(wait=False)
        self._rows.append(row)
        if time.monotonic() - self._appended_at >= APPEND_SECONDS:
            self._append_rows()

    def save(self, snapshot: Snapshot) -> None:
        """Write a snapshot in the background, after the one before."""
        self.wait()
        if self.run is not None:
            self._snapshot = self._executor.submit(snapshot.write, self.run)
            self._writes.append(self._snapshot)

    def write(self, write: Callable[..., None], *arguments: Any) -> None:  # noqa: ANN401
        """Call a function that writes a file, after all that was to be written before, now."""
        self.wait()
        if self.run is not None:
            self._guard(write, *arguments)

    def wait(self) -> None:
        """Wait until all rows and the last snapshot are written."""
        self._append_rows()
        self._raise_errors(wait=True)

    def _append_rows(self) -> None:
        rows, self._rows = "".join(self._rows), []
        self._appended_at = time.monotonic()
        if rows and self.run is not None:
            self._writes.append(self._executor.submit(self.run.append_steps, rows))

    def _raise_errors(self, *, wait: bool) -> None:
        while self._writes and (wait or self._writes[0].done()):
            self._guard(self._writes.popleft().result)

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


def restore(
    run: RunDir,
    config: Config,
    before: RunRecord,
    record: RunRecord,
    step: Step,
    checkpointer: AsyncCheckpointer,
) -> tuple[RunRecord, TrainState]:
    """Return the record and state of a run that is resumed, and load its last snapshot.

    Without a snapshot the run begins anew. `before` is the recorded record, `record` that of now.
    The files are brought to the moment of the snapshot.
    """
    state = TrainState()
    snapshot = from_main(lambda: _load_fitting_snapshot(run, config, before, step))
    if snapshot is not None:
        step_state, state = snapshot
        step.load_state(step_state)
    changed = environment_diff(before, record)
    if state.is_over(config.train.epochs, config.train.patience):
        logger.info(f"run {run.path} is complete after {len(state.rows)} epochs")
    elif changed and step.num_steps:
        logger.warning(
            "the weights may differ in their last bits from those of an uninterrupted run, "
            f"since this has changed: {'; '.join(changed)}"
        )
    record = merge_resumed(before, record)
    checkpointer.write(run.write_config, config_tables(config))
    checkpointer.write(run.write_record, record)
    checkpointer.write(run.truncate_steps, step.num_steps)
    if state.rows:
        checkpointer.write(run.write_metrics, state.rows)
    return record, state


def _load_fitting_snapshot(
    run: RunDir, config: Config, before: RunRecord, step: Step
) -> tuple[dict[str, Any], TrainState] | None:
    """Read `resume.pt` and check that it fits the config; None for a run that has none yet."""
    if not run.resume_path.exists():
        if before.init:
            raise RunError(
                f"run {run.path} cannot be continued: it has no resume.pt; train a new one"
            )
        return None
    step_state, state = load_snapshot(run, step.parameters, step.buffers)
    num_batches = len(step.loader)
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
