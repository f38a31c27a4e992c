"""A run as TensorBoard events, written while it goes on."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from mnist_ce.runs.records import RunRecord
from mnist_ce.runs.train_state import EpochMetrics
from mnist_ce.system.distributed import is_main
from mnist_ce.system.errors import UsageError
from mnist_ce.training.callbacks import Callback, RunInfo, TrainResult

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["FOLDER", "TensorBoardCallback"]

FOLDER = "tensorboard"  # in the run's own
_SCALARS = {
    "loss/train": "train_loss",
    "loss/validation": "validation_loss",
    "loss/test": "test_loss",
    "accuracy/train": "train_accuracy",
    "accuracy/validation": "validation_accuracy",
    "accuracy/test": "test_accuracy",
    "learning_rate": "learning_rate",
    "images_per_second": "images_per_second",
}
_METRICS = ("loss/test", "accuracy/test")


class TensorBoardCallback(Callback):
    """Writes TensorBoard events into the run's directory. A context manager, which closes the file.

    Hyper-parameters are written at the start, scalars after each epoch, and the plot of mistakes
    at the end, where it was drawn.

    Raises:
        UsageError: If the tensorboard package is missing.
    """

    def __init__(self) -> None:
        try:
            import torch.utils.tensorboard  # noqa: F401
        except ImportError as error:
            raise UsageError(
                f"--tensorboard needs the package {error.name or 'tensorboard'}: "
                "pip install 'mnist-ce[tensorboard]'"
            ) from None
        self.writer: SummaryWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None

    def on_start(self, info: RunInfo) -> None:
        """Open the file of events; those of epochs that come again are dropped."""
        if not is_main():
            return
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        purge_step = info.epoch if info.epoch > 1 else None
        self.writer = SummaryWriter(str(info.run.path / FOLDER), purge_step=purge_step)
        settings = {
            key: value if isinstance(value, bool | int | float) else str(value)
            for key, value in RunRecord(config=info.config.to_dict()).flat_config.items()
            if not key.startswith("run.")
        }
        # `SummaryWriter.add_hparams` would put them into a directory of their own.
        file = self.writer._get_file_writer()  # type: ignore[no-untyped-call]
        for summary in hparams(settings, dict.fromkeys(_METRICS, 0.0)):  # type: ignore[no-untyped-call]
            file.add_summary(summary)

    def on_epoch(self, metrics: EpochMetrics) -> None:
        """Write the epoch's metrics."""
        if self.writer is not None:
            for tag, key in _SCALARS.items():
                if metrics.get(key) is not None:
                    self.writer.add_scalar(tag, metrics[key], metrics["epoch"])
            self.writer.flush()

    def on_end(self, result: TrainResult) -> None:
        """Write the plot of mistakes."""
        picture = result.run.path / "mistakes.png"
        if self.writer is not None and picture.is_file():
            self.writer.add_image("mistakes", _pixels(picture), len(result.rows), dataformats="HWC")


def _pixels(path: Path) -> Any:  # noqa: ANN401 - uint8 [height, width, 3]
    import numpy as np
    from PIL import Image

    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))
