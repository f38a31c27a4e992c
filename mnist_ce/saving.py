"""What a run saves while it goes on, and how it is found again.

`resume.pt` is the truth: weights, momentum and progress of one moment. It is written last, and
whatever a killed process wrote ahead of it is written again, equal, when the run is continued. So
no moment between two writes is a bad one to be killed in.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mnist_ce.checkpoint import load_tensors, save_tensors
from mnist_ce.errors import RunError
from mnist_ce.files import one_line
from mnist_ce.progress import Progress
from mnist_ce.records import FORMAT_VERSION, Run

__all__ = ["Saver", "Snapshot", "load_snapshot"]

_PLAIN = (torch.float32, torch.strided)


@dataclass(frozen=True)
class Snapshot:
    """A run at one moment, in copies that training does not change.

    Args:
        state: What `Step.state` returned.
        progress: What `Progress.to_plain` returned.
        weights: For `model.pt`, by name, on the CPU; None within an epoch.
        best: For `best.pt`, where an epoch was better than the ones before; else None.
        has_new_rows: Whether `metrics.csv` is to be written.
    """

    state: dict[str, Any]
    progress: dict[str, Any]
    weights: dict[str, Tensor] | None = None
    best: dict[str, Tensor] | None = None
    has_new_rows: bool = False

    def write(self, run: Run) -> None:
        """Write it, `resume.pt` last.

        Raises:
            OSError: If a file cannot be written; each is the old one or the new one, whole.
        """
        if self.best is not None:
            save_tensors(run.best_path, self.best)
        if self.weights is not None:
            save_tensors(run.model_path, self.weights)
        if self.has_new_rows:
            run.write_metrics(self.progress["rows"])
        content = {
            "format_version": FORMAT_VERSION,
            "step": self.state,
            "progress": self.progress,
        }
        save_tensors(run.resume_path, content)


def load_snapshot(run: Run, weights: dict[str, Tensor]) -> tuple[dict[str, Any], Progress]:
    """Read `resume.pt`.

    Args:
        run: Where it lies.
        weights: The network's weights, whose names and shapes the saved ones must have.

    Returns:
        What `Step.load_state` takes, and the progress.

    Raises:
        CheckpointError: If the file is damaged.
        RunError: If it does not belong to this run.
    """
    content = load_tensors(run.resume_path)
    try:
        if not isinstance(content, dict) or not isinstance(content["step"], dict):
            raise TypeError("it is not a table")
        state, version = content["step"], content["format_version"]
        if not isinstance(version, int) or version != FORMAT_VERSION:
            raise ValueError(f"format_version {version!r}")
        if not isinstance(state["num_steps"], int):
            raise ValueError("num_steps is not a number")
        for part in ("weights", "momentum", "average"):
            _check(part, state[part], weights, may_be_empty=part != "weights")
        return state, Progress.from_plain(content["progress"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(
            f"{run.resume_path} does not belong to this run: {one_line(error)}"
        ) from None


def _check(part: str, found: Any, expected: dict[str, Tensor], *, may_be_empty: bool) -> None:  # noqa: ANN401
    """Check names and shapes before anything is copied: a file may promise any size."""
    if not isinstance(found, dict):
        raise TypeError(f"its {part} are not a table")
    if not found and may_be_empty:
        return
    if set(found) != set(expected):
        raise ValueError(f"its {part} are of another network")
    for name, tensor in expected.items():
        value = found[name]
        if not isinstance(value, Tensor) or (value.dtype, value.layout) != _PLAIN:
            raise ValueError(f"{name} in its {part} is not a plain tensor of float32")
        if value.shape != tensor.shape or not value.is_contiguous():
            raise ValueError(f"{name} in its {part} has another shape")


class Saver:
    """Writes a run's files, snapshots in the background; use it as a context manager.

    Args:
        run: Where to write; None: nowhere, in a process that is not the main one.
    """

    def __init__(self, run: Run | None) -> None:
        self.run = run
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self.pending: Future[None] | None = None

    def __enter__(self) -> Saver:
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
