"""Options that several commands share, their help, and what is said of wrong ones."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option
from typer.core import TyperCommand

from mnist_ce.system.errors import UsageError
from mnist_ce.system.files import shipped_dir
from mnist_ce.system.text import did_you_mean, percent_hint, plain_reason

DATASETS = (
    "auto, mnist, fashion-mnist, kmnist, synthetic, csv:FILE, npz:FILE, idx:DIR, folder:DIR or "
    "mnist+folder:DIR."
)
RECIPES = sorted(path.stem for path in shipped_dir("configs").glob("*.toml"))
CONFIG_HELP = f"A TOML file or a recipe: {', '.join(RECIPES)}."
CHECKPOINT_HELP = "A run's name or folder, latest, a state_dict file, or weights: world, mnist."
NO_CHECKPOINT = "the newest finished multi-class run, else mnist"

Checkpoint = Annotated[str | None, Option(help=CHECKPOINT_HELP, show_default=NO_CHECKPOINT)]
CheckpointArgument = Annotated[
    str | None,
    Argument(metavar="RUN or CHECKPOINT", help=CHECKPOINT_HELP, show_default=NO_CHECKPOINT),
]
Assignments = Annotated[
    list[str] | None, Option("--set", help="Any other key, as section.key=value.")
]
DataDir = Annotated[
    str | None, Option(help="Folder of the datasets (also MNIST_CE_DATA_DIR).", show_default="data")
]
Device = Annotated[str, Option(help="auto, cpu, cuda, cuda:N or mps.")]
Threads = Annotated[int, Option(min=0, help="CPU threads; 0: as torch chooses.")]
Output = Annotated[str, Option(help="Folder that holds the runs.")]
OtherDataset = Annotated[
    str | None, Option("--dataset", help="Another, as in train.", show_default="the run's own")
]
Split = Annotated[str, Option(help="train, validation or test.")]
Json = Annotated[bool, Option("--json", help="Print one JSON document.")]
Model = Annotated[str | None, Option(help="A module of your own: a class in a file, which is run.")]


def _check_plot(path: Path | None) -> Path | None:
    if path is not None and path.suffix.lower() != ".png":
        raise UsageError(f"--plot {path}: the plot is a PNG; end its name in .png")
    return path


Plot = Annotated[Path | None, Option(help="Draw the result.", callback=_check_plot)]


def _network(
    model: Model = None,
    activation: Annotated[
        str | None,
        Option(
            help="Between the layers: relu, tanh, sigmoid, none, leaky, gelu, elu.",
            show_default="relu",
        ),
    ] = None,
    input_mean: Annotated[float, Option(help="Input is (pixel/255 - mean) / std.")] = 0.0,
    input_std: Annotated[float, Option(help="See --input-mean.")] = 1.0,
) -> None: ...


def with_network(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command that has a parameter `network` the options of `NetworkOptions`, as a dict."""
    own, shared = (inspect.signature(one, eval_str=True).parameters for one in (command, _network))
    if "network" not in own:
        return command

    @functools.wraps(command)
    def run(**arguments: Any) -> None:  # noqa: ANN401
        command(network={name: arguments.pop(name) for name in shared}, **arguments)

    parameters = [value for name, value in (own | shared).items() if name != "network"]
    vars(run)["__signature__"] = inspect.Signature(parameters)
    return run


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

# The click inside Typer, whose place may change.
ClickError: type[Exception] = typer.BadParameter.__mro__[2]
TRACEBACK = "--traceback"  # for every command: `main` takes it out
_HEADINGS = {
    "Recipe": ("config", "epochs", "batch_size", "lr", "momentum", "init", "seed", "assignments"),
    "Data and device": ("dataset", "data_dir", "mirror", "device", "threads", "step"),
    "Run": ("output", "name", "resume", "dry_run", "tensorboard", "live", "no_browser"),
    "Weights of other programs": ("model", "activation", "input_mean", "input_std"),
}
_METAVARS = {  # what help calls the value of an option
    "DIR": ("data_dir", "output", "corrections", "save_inputs", "stages", "annotate"),
    "FILE": ("checkpoint", "checkpoint_option", "config", "init", "file", "token_file", "search"),
    "FILE.csv": ("predictions",),
    "FILE.png": ("plot",),
    "FILE.py:NAME": ("model",),
    "KEY=VALUE": ("assignments",),
    "KEY=A,B,C": ("grid",),
    "N": ("threads", "epochs", "batch_size", "seed", "top_k", "limit", "trials", "jobs", "port"),
    "NAME": ("activation", "reduction", "name", "delete", "step", "split", "allow_host"),
    "DEVICE": ("device",),
    "NUMBERS": ("logits", "probabilities", "target", "seeds"),
    "NUMBER": ("lr", "momentum", "input_mean", "input_std", "min_confidence"),
    "RUN": ("held_out", "resume"),
    "URL": ("mirror", "storage", "allow_origin"),
}


class Command(TyperCommand):
    """A command whose help has its options under headings, with what their values are."""

    # Context and HelpFormatter belong to the click inside Typer, whose place may change.
    def format_options(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401
        heading_of = {name: heading for heading, names in _HEADINGS.items() for name in names}
        metavar_of = {name: metavar for metavar, names in _METAVARS.items() for name in names}
        defaults = _defaults() if ctx.info_name == "train" else {}
        groups: dict[str, list[tuple[str, str]]]
        groups = {heading: [] for heading in ("Arguments", *_HEADINGS, "Options")}
        for parameter in self.get_params(ctx):
            name, rest = str(parameter.name), f"{parameter.param_type_name}s".title()
            parameter.metavar = parameter.metavar or metavar_of.get(name)
            if name in defaults:
                vars(parameter).update(default=defaults[name], show_default=True)
            if (record := parameter.get_help_record(ctx)) is not None:
                groups[heading_of.get(name, rest)].append(record)
        groups["Options"].insert(-1, (TRACEBACK, "Show where in the code an error arose."))
        for heading, records in groups.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


def _defaults() -> dict[str, Any]:
    """Return the config's defaults of the options of `train`, which have none of their own."""
    from mnist_ce.config import resolve_config

    values = resolve_config().flat()
    return {name: values[key] for name, key in CONFIG_KEYS.items() if values[key] != ""}


def usage_message(failure: Any) -> str:  # noqa: ANN401 - a `ClickError`
    context = getattr(failure, "ctx", None)
    params = context.command.params if context else []
    options = [name for param in params for name in param.opts if name.startswith("--")]
    message = re.sub(r"^Invalid value(?: for ([^:]*))?: ", r"\1: ", failure.format_message())
    message = message.removeprefix(": ").replace("'", "").rstrip(".")
    details: list[Any] = getattr(failure.__cause__, "errors", list)()  # pydantic's
    if details:
        place, value = message.partition(":")[0], details[0]["input"]
        hint = percent_hint(value) if "--min-confidence" in place else ""
        message = f"{place} = {value}: {plain_reason(details[0]['msg'])}{hint}"
    elif hasattr(failure, "possibilities"):
        name = failure.option_name
        message = f"no such option: {name}{_suggestion(name, '', options)}"
    elif match := re.search(r"unexpected extra argument(?:s|\(s\))? \((.*)\)", message):
        name, _, value = match[1].replace("=", " ", 1).partition(" ")
        message = f"unexpected argument: {match[1]}{_suggestion(name, value, options)}"
    else:
        message = message.replace(". Did you mean", "; did you mean")
    help_command = f"{context.command_path if context else 'mnist-ce'} --help"
    return f"{message[:1].lower()}{message[1:]} (see {help_command})"


def _suggestion(word: str, value: str, options: Sequence[str]) -> str:
    """Suggest an option for one that does not exist, or for `epochs=1`, `epochs 1` or `fast`."""
    key = word.removeprefix("--").replace("-", "_")
    if "--set" in options:  # all keys of the config can be given
        from mnist_ce.config import find_key, shipped_configs

        if word in shipped_configs():
            return f"; did you mean --config {word}?"
        flags = {key_of: f"--{name.replace('_', '-')}" for name, key_of in CONFIG_KEYS.items()}
        if full := find_key(key):
            setting = f"--set {full}={value or 'VALUE'}"
            option = f"{flags[full]} {value}" if flags.get(full) in options else setting
            return f"; did you mean {option.rstrip()}?"
    is_option = word.startswith("--") or bool(value)
    return did_you_mean(f"--{key.replace('_', '-')}", options) if is_option else ""
