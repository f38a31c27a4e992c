"""TensorBoard events of a run, written during training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mnist_ce.runs.records import RunRecord
from mnist_ce.runs.train_state import EpochMetrics
from mnist_ce.system.distributed import is_main
from mnist_ce.system.errors import require
from mnist_ce.training.callbacks import Callback, RunInfo, TrainResult

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"  # in the run's directory
_SCALARS = {
    f"{quantity}/{split}": f"{split}_{quantity}"
    for quantity in ("loss", "accuracy")
    for split in ("train", "validation", "test")
} | {"learning_rate": "learning_rate", "images_per_second": "images_per_second"}


class TensorBoardCallback(Callback):
    """Writes TensorBoard events into the run's directory.

    A resumed run writes nothing twice. A UsageError if the tensorboard package is missing.
    """

    def __init__(self) -> None:
        require("tensorboard", extra="tensorboard")
        self.writer: SummaryWriter | None = None
        self.has_trained = False

    def on_start(self, info: RunInfo) -> None:
        if not is_main():
            return
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        folder = info.run.path / FOLDER
        is_resumed = folder.is_dir()
        # Events of epochs to be repeated are dropped.
        self.writer = SummaryWriter(str(folder), purge_step=info.epoch if is_resumed else None)
        if is_resumed:
            return
        splits = ("validation", "test") if info.config.data.validation_size else ("test",)
        metrics = [f"{quantity}/{split}" for quantity in ("loss", "accuracy") for split in splits]
        settings = {
            key: value if isinstance(value, bool | int | float) else str(value)
            for key, value in RunRecord(config=info.config.to_dict()).flat_config.items()
            if not key.startswith("run.")
        }
        # `SummaryWriter.add_hparams` would write a second event file. The values of the metrics are
        # those of the scalars with their tags.
        for summary in hparams(settings, dict.fromkeys(metrics, 0.0)):  # type: ignore[no-untyped-call]
            self.writer.file_writer.add_summary(summary)  # type: ignore[attr-defined]

    def on_epoch(self, metrics: EpochMetrics) -> None:
        self.has_trained = True
        if self.writer is not None:
            values: Mapping[str, Any] = metrics
            for tag, key in _SCALARS.items():
                if key in values:
                    self.writer.add_scalar(tag, values[key], metrics["epoch"])
            self.writer.flush()

    def on_end(self, result: TrainResult) -> None:
        path = result.run.path / "mistakes.png"
        if self.writer is not None and self.has_trained and path.is_file():
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"))  # uint8 [height, width, 3]
            self.writer.add_image("mistakes", pixels, len(result.rows), dataformats="HWC")

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
