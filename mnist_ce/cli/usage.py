"""Messages about a wrong command line, in the words of all other errors, with a suggestion."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import typer

from mnist_ce.cli.options import CONFIG_KEYS
from mnist_ce.system.text import did_you_mean, percent_hint, plain_reason, sanitize

# The click inside Typer, whose place may change.
ClickError: type[Exception] = typer.BadParameter.__mro__[2]


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
        message = f"{place} = {sanitize(str(value))}: {plain_reason(details[0]['msg'])}{hint}"
    elif hasattr(failure, "possibilities"):
        name = sanitize(failure.option_name)
        message = f"no such option: {name}{_meant_option(name, options)}"
    elif match := re.search(r"unexpected extra argument(?:s|\(s\))? \((.*)\)", message):
        message = f"unexpected argument: {match[1]}{_meant_words(match[1].split(), options)}"
    else:
        message = message.replace(". Did you mean", "; did you mean")
    help_command = f"{context.command_path if context else 'mnist-ce'} --help"
    return f"{message[:1].lower()}{message[1:]} (see {help_command})"


def _meant_option(name: str, options: Sequence[str]) -> str:
    """Suggest the option, or the key of the config, for an option that does not exist."""
    key = name.removeprefix("--").replace("-", "_")
    if "--set" in options:
        from mnist_ce.config import Config

        for full in Config().flat():
            if full.partition(".")[2] == key:
                flags = [flag for flag, of in CONFIG_KEYS.items() if of == full]
                return f"; did you mean --{flags[0]}?" if flags else f"; write --set {full}=VALUE"
    return did_you_mean(name, options)


def _meant_words(words: Sequence[str], options: Sequence[str]) -> str:
    """Suggest an option for `epochs=1`, `epochs 1`, `train.epochs=1` or the name of a recipe."""
    name, _, value = words[0].partition("=")
    value = value or " ".join(words[1:2])
    option = f"--{name.replace('_', '-')}"
    if option in options and value:
        return f"; did you mean {option} {value}?"
    if "--set" in options:
        from mnist_ce.config import shipped_configs

        if "." in name and value:
            return f"; did you mean --set {name}={value}?"
        if name in shipped_configs():
            return f"; did you mean --config {name}?"
    return _meant_option(option, options) if value else ""
