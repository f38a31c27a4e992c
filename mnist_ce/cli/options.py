"""Options that several commands share, and the grouping of options in a command's help."""

from __future__ import annotations

from typing import Annotated, Any

from typer import Argument, Option
from typer.core import TyperCommand

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
InputMean = Annotated[
    float, Option(help="For foreign networks: input is (pixel/255 - mean) / std.")
]
InputStd = Annotated[float, Option(help="See --input-mean.")]
Json = Annotated[bool, Option("--json", help="Print one JSON document.")]

CONFIG_KEYS = {
    "epochs": "train.epochs",
    "batch-size": "train.batch_size",
    "lr": "optimizer.learning_rate",
    "momentum": "optimizer.momentum",
    "init": "train.init",
    "seed": "train.seed",
    "dataset": "data.dataset",
    "data-dir": "data.dir",
    "mirror": "data.mirror",
    "device": "train.device",
    "threads": "train.threads",
    "step": "train.step",
    "output": "run.output",
    "name": "run.name",
}
"""The keys of the config that options of `train` set."""

_HEADINGS = {
    "Recipe": ("config", "epochs", "batch_size", "lr", "momentum", "init", "seed", "assignments"),
    "Data and device": ("dataset", "data_dir", "mirror", "device", "threads", "step"),
    "Run": ("output", "name", "resume", "dry_run", "tensorboard", "live"),
}
_HEADING_OF = {name: heading for heading, names in _HEADINGS.items() for name in names}


class GroupedCommand(TyperCommand):
    """A command with its options in groups in its help (Typer groups them with Rich only)."""

    # Context and HelpFormatter belong to the click inside Typer, whose place may change.
    def get_params(self, ctx: Any) -> list[Any]:  # noqa: ANN401
        """Add the program's `--traceback` before `--help`."""
        *own, help_option = super().get_params(ctx)
        shared = [p for p in ctx.find_root().command.params if p.name == "traceback"]
        return [*own, *shared, help_option]

    def format_options(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401
        """Write arguments and options, each group under its heading, other options last."""
        if ctx.info_name == "train":
            _show_config_defaults(self.params)
        headings = ("Arguments", *_HEADINGS, "Options")
        groups: dict[str, list[tuple[str, str]]] = {heading: [] for heading in headings}
        for parameter in self.get_params(ctx):
            rest = "Arguments" if parameter.param_type_name == "argument" else "Options"
            if (record := parameter.get_help_record(ctx)) is not None:
                groups[_HEADING_OF.get(str(parameter.name), rest)].append(record)
        for heading, records in groups.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


def _show_config_defaults(parameters: list[Any]) -> None:
    """Let the help of `train` show the config's defaults and the recipes' names."""
    from mnist_ce.config import resolve_config, shipped_configs

    defaults = resolve_config().flat()
    for parameter in parameters:
        if parameter.name == "config":
            parameter.help = f"A TOML file or a recipe: {', '.join(shipped_configs())}."
        default = defaults.get(CONFIG_KEYS.get(parameter.name.replace("_", "-"), ""), "")
        if default != "":
            parameter.default, parameter.show_default = default, True
