"""What explains the command line: options in groups, the keys of a config, wrong usage."""

from __future__ import annotations

import itertools
import re
import textwrap
import tomllib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand

from mnist_ce.cli.options import CONFIG_KEYS
from mnist_ce.system.text import did_you_mean, percent_hint, plain_reason

if TYPE_CHECKING:  # pydantic, below, takes as long as all the rest
    from mnist_ce.config import Config, Section

# The click inside Typer, whose place may change.
ClickError: type[Exception] = typer.BadParameter.__mro__[2]
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
        *options, help_option = super().get_params(ctx)
        shared = [p for p in ctx.find_root().command.params if p.name == "with_traceback"]
        return [*options, *shared, help_option]

    def format_options(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401
        headings = ("Arguments", *_HEADINGS, "Options")
        groups: dict[str, list[tuple[str, str]]] = {heading: [] for heading in headings}
        if ctx.info_name == "train":
            _show_defaults(self.params)
        for parameter in self.get_params(ctx):
            rest = "Arguments" if parameter.param_type_name == "argument" else "Options"
            if (record := parameter.get_help_record(ctx)) is not None:
                groups[_HEADING_OF.get(str(parameter.name), rest)].append(record)
        for heading, records in groups.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


def _show_defaults(parameters: Sequence[Any]) -> None:
    """Let the options of `train`, which has no values of its own, show the config's."""
    from mnist_ce.config import resolve_config, shipped_configs

    defaults = resolve_config().flat()
    for parameter in parameters:
        if (default := defaults.get(CONFIG_KEYS.get(parameter.name, ""), "")) != "":
            parameter.default, parameter.show_default = default, True
        if parameter.name == "config":
            parameter.help = f"A TOML file or a recipe: {', '.join(shipped_configs())}."


def usage_message(failure: Any) -> str:  # noqa: ANN401 - a `ClickError`
    """Return one line on what Typer refused: what is wrong, and what was probably meant."""
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
        from mnist_ce.config import Config, shipped_configs

        if word in shipped_configs():
            return f"; did you mean --config {word}?"
        flags = {config_key: name.replace("_", "-") for name, config_key in CONFIG_KEYS.items()}
        for full in Config().flat():
            if key in (full, full.partition(".")[2]):
                setting = f"--set {full}={value or 'VALUE'}"
                option = f"--{flags[full]} {value}".rstrip() if full in flags else setting
                return f"; did you mean {option}?"
    is_option = word.startswith("--") or bool(value)
    return did_you_mean(f"--{key.replace('_', '-')}", options) if is_option else ""


def config_text(config: Config) -> str:
    """Return a whole config as TOML, each key under its meaning, after a list of the recipes.

    The meanings and the list are comments; reading the text gives the config.
    """
    import tomli_w

    from mnist_ce.config import shipped_configs

    recipes = shipped_configs()
    width = max(map(len, recipes), default=0)
    parts = ["# Shipped recipes, for: mnist-ce train --config NAME"]
    for name, path in recipes.items():
        lines = path.read_text(encoding="utf-8").splitlines()
        comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
        sentence, stop, _ = " ".join(line.lstrip("# ") for line in comment).partition(". ")
        parts.append(_comment(f"{name:<{width}}  {sentence}{stop.strip()}", width + 2))
    for name in type(config).model_fields:
        section: Section = getattr(config, name)
        parts += ["", _comment(type(section).__doc__ or ""), f"[{name}]"]
        for key, field in type(section).model_fields.items():
            value = tomli_w.dumps({key: section.model_dump(mode="json")[key]}).strip()
            if "\n" in value:  # tomli_w writes each element of a list in a line of its own
                value = f"{key} = [{', '.join(map(str, tomllib.loads(value)[key]))}]"
            parts += [_comment(field.description or ""), value]
    return "\n".join(parts) + "\n"


def _comment(text: str, hanging: int = 0) -> str:
    lines = textwrap.wrap(text, 78, subsequent_indent=" " * hanging, break_on_hyphens=False)
    return "\n".join(f"# {line}" for line in lines)
