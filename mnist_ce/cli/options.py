"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from mnist_ce.system.errors import UsageError

CHECKPOINT_HELP = "A run's name or folder, latest, a state_dict file, or weights: world, mnist."
NO_CHECKPOINT = "the newest finished multi-class run, else mnist"

Checkpoint = Annotated[
    str | None, Option(help=CHECKPOINT_HELP, metavar="FILE", show_default=NO_CHECKPOINT)
]
CheckpointArgument = Annotated[
    str | None,
    Argument(
        metavar="[RUN or CHECKPOINT]",
        help=f"{CHECKPOINT_HELP} Default: {NO_CHECKPOINT}.",
        show_default=False,
    ),
]
Assignments = Annotated[
    list[str] | None,
    Option("--set", help="Any other key, as section.key=value.", metavar="KEY=VALUE"),
]
DataDir = Annotated[
    str | None,
    Option(
        help="Folder of the datasets (also MNIST_CE_DATA_DIR).", show_default="data", metavar="DIR"
    ),
]
Device = Annotated[str, Option(help="auto, cpu, cuda, cuda:N or mps.", metavar="DEVICE")]
Threads = Annotated[int, Option(min=0, help="CPU threads; 0: as torch chooses.", metavar="N")]
Output = Annotated[str, Option(help="Folder that holds the runs.", metavar="DIR")]
OtherDataset = Annotated[
    str | None, Option("--dataset", help="Another, as in train.", show_default="the run's own")
]
Split = Annotated[str, Option(help="train, validation or test.")]
InputMean = Annotated[
    float, Option(help="For foreign networks: input is (pixel/255 - mean) / std.")
]
InputStd = Annotated[float, Option(help="See --input-mean.")]
Json = Annotated[bool, Option("--json", help="Print one JSON document.")]


def plot(description: str) -> Any:  # noqa: ANN401 - what Typer's `Option` returns
    """Return the option `--plot` of a command that draws what is described."""

    def check(path: Path | None) -> Path | None:
        if path is not None and path.suffix.lower() != ".png":
            raise UsageError(f"--plot {path}: the plot is a PNG; end its name in .png")
        return path

    return Option("--plot", help=description, metavar="FILE.png", callback=check)


CONFIG_KEYS = {
    "epochs": "train.epochs",
    "batch_size": "train.batch_size",
    "lr": "optimizer.learning_rate",
    "momentum": "optimizer.momentum",
    "init": "train.init",
    "seed": "train.seed",
    "dataset": "data.dataset",
    "data_dir": "data.dir",
    "mirror": "data.mirror",
    "device": "train.device",
    "threads": "train.threads",
    "step": "train.step",
    "output": "run.output",
    "name": "run.name",
}
"""The keys of the config that parameters of `train` set."""
