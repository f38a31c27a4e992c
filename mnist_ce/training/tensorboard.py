"""A run as TensorBoard events, written while it goes on."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from mnist_ce.runs.train_state import EpochMetrics
from mnist_ce.system.distributed import is_main
from mnist_ce.system.errors import UsageError
from mnist_ce.training.callbacks import Callback
from mnist_ce.training.trainer import Trainer, TrainResult

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
    """Writes events into the run's folder and passes all that it hears on to another reporter.

    Scalars come after each epoch, the hyper-parameters at the start and the picture of mistakes,
    where it was drawn, at the end. Use it as a context manager, which closes the file.

    Args:
        inner: Who else is told.

    Raises:
        UsageError: If the tensorboard package is missing.
    """

    def __init__(self, inner: Callback | None = None) -> None:
        try:
            import torch.utils.tensorboard  # noqa: F401
        except ImportError as error:
            raise UsageError(
                f"--tensorboard needs the package {error.name or 'tensorboard'}: "
                "pip install 'mnist-ce[tensorboard]'"
            ) from None
        self.inner = inner or Callback()
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

    def start(self, trainer: Trainer) -> None:
        """Open the events' file; of a continued run, what comes again is forgotten there."""
        if is_main():
            self._open(trainer)
        self.inner.start(trainer)

    def _open(self, trainer: Trainer) -> None:
        from torch.utils.tensorboard import SummaryWriter

        epoch = trainer.progress.epoch
        self.writer = SummaryWriter(
            str(trainer.run.path / FOLDER), purge_step=epoch if epoch > 1 else None
        )
        self._hyper_parameters(trainer)

    def _hyper_parameters(self, trainer: Trainer) -> None:
        """Write the settings as TensorBoard's HPARAMS page reads them, beside the run's scalars.

        (`SummaryWriter.add_hparams` would put them into a folder of their own.)
        """
        from torch.utils.tensorboard.summary import hparams

        assert self.writer is not None
        settings = {
            f"{section}.{key}": value if isinstance(value, bool | int | float) else str(value)
            for section, table in trainer.config.to_dict().items()
            if section != "run"
            for key, value in table.items()
        }
        file = self.writer._get_file_writer()  # type: ignore[no-untyped-call]
        for summary in hparams(settings, dict.fromkeys(_METRICS, 0.0)):  # type: ignore[no-untyped-call]
            file.add_summary(summary)

    def batch(self, trainer: Trainer) -> None:
        """Pass it on."""
        self.inner.batch(trainer)

    def epoch(self, trainer: Trainer, row: EpochMetrics) -> None:
        """Write what was measured."""
        if self.writer is not None:
            for tag, key in _SCALARS.items():
                if row.get(key) is not None:
                    self.writer.add_scalar(tag, row[key], row["epoch"])
            self.writer.flush()
        self.inner.epoch(trainer, row)

    def complete(self, trainer: Trainer) -> None:
        """Pass it on."""
        self.inner.complete(trainer)

    def finish(self, trainer: Trainer, result: TrainResult) -> None:
        """Write the picture of mistakes."""
        picture = result.run.path / "mistakes.png"
        if self.writer is not None and picture.is_file():
            self.writer.add_image("mistakes", _pixels(picture), len(result.rows), dataformats="HWC")
        self.inner.finish(trainer, result)

    def stop_signal(self) -> int | None:
        """Ask the other."""
        return self.inner.stop_signal()


def _pixels(path: Path) -> Any:  # noqa: ANN401 - uint8 [height, width, 3]
    import numpy as np
    from PIL import Image

    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))
