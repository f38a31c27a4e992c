"""Options that several commands share, their help, and what is said of wrong ones."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option
from typer.core import TyperCommand

from mnist_ce.system.errors import UsageError
from mnist_ce.system.files import shipped_dir
from mnist_ce.system.text import did_you_mean, percent_hint, plain_reason

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


# The click inside Typer, whose place may change.
ClickError: type[Exception] = typer.BadParameter.__mro__[2]
TRACEBACK = "--traceback"  # for every command: `main` takes it out
_METAVARS = {  # what help calls the value of an option
    "DIR": ("data-dir", "output", "corrections", "save-inputs", "stages", "annotate"),
    "FILE": ("checkpoint", "config", "init", "file", "token-file", "search"),
    "FILE.csv": ("predictions",),
    "FILE.png": ("plot",),
    "FILE.py:NAME": ("model",),
    "KEY=VALUE": ("set",),
    "KEY=A,B,C": ("grid",),
    "N": ("threads", "epochs", "batch-size", "seed", "top-k", "limit", "trials", "jobs", "port"),
    "NAME": ("activation", "dataset", "device", "reduction", "name", "delete", "split"),
    "auto|fast|plain": ("step",),
    "NUMBERS": ("logits", "probabilities", "target", "seeds"),
    "NUMBER": ("lr", "momentum", "input-mean", "input-std", "min-confidence"),
    "RUN": ("with", "resume"),
    "URL": ("mirror", "storage", "allow-origin"),
}


def config_key(parameter: str) -> str:
    """Return the key of the config that a parameter of `train` sets, if it sets one."""
    return parameter.replace("_", ".", 1)


class Command(TyperCommand):
    """A command whose help says what the values of options are, and the defaults of the config."""

    # Context and HelpFormatter belong to the click inside Typer, whose place may change.
    def format_options(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401
        metavar_of = {flag: metavar for metavar, flags in _METAVARS.items() for flag in flags}
        keys: dict[str, tuple[str, Any]] = {}  # description and default of each
        if ctx.info_name == "train":
            from mnist_ce.config import resolve_config

            for section, table in resolve_config():
                for key, field in type(table).model_fields.items():
                    keys[f"{section}.{key}"] = field.description, getattr(table, key)
        for parameter in self.get_params(ctx):
            parameter.metavar = parameter.metavar or metavar_of.get(parameter.opts[-1].strip("-"))
            if key := keys.get(config_key(str(parameter.name))):
                help_text = key[0].replace("`", "")
                vars(parameter).update(help=help_text, default=key[1], show_default=key[1] != "")
        super().format_options(ctx, formatter)


def usage_message(failure: Any) -> str:  # noqa: ANN401 - a `ClickError`
    context = getattr(failure, "ctx", None)
    params = context.command.params if context else []
    options = {n: str(param.name) for param in params for n in param.opts if n.startswith("--")}
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


def _suggestion(word: str, value: str, options: Mapping[str, str]) -> str:
    """Suggest an option for one that does not exist, or for `epochs=1`, `epochs 1` or `fast`.

    `options` has the name of the parameter of each.
    """
    key = word.removeprefix("--").replace("-", "_")
    if "--set" in options:  # all keys of the config can be given
        from mnist_ce.config import find_key

        if word in RECIPES:
            return f"; did you mean --config {word}?"
        option_of = {config_key(name): option for option, name in options.items()}
        if full := find_key(key):
            setting = f"--set {full}={value or 'VALUE'}"
            option = f"{option_of[full]} {value}" if full in option_of else setting
            return f"; did you mean {option.rstrip()}?"
    is_option = word.startswith("--") or bool(value)
    return did_you_mean(f"--{key.replace('_', '-')}", options) if is_option else ""
