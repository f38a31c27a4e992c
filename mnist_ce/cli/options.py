"""The options of the commands: their descriptions, and their groups in a command's help."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from typer import Argument, Option
from typer.core import TyperCommand

_DESCRIPTIONS = tomllib.loads(Path(__file__).with_name("options.toml").read_text(encoding="utf-8"))
_HEADINGS = {
    "Recipe": ("config", "epochs", "batch_size", "lr", "momentum", "seed", "assignments"),
    "Data and device": ("dataset", "data_dir", "mirror", "device", "threads", "step"),
    "Run": ("output", "name", "resume", "dry_run", "tensorboard"),
}
_HEADING_OF = {name: heading for heading, names in _HEADINGS.items() for name in names}


def describe_options(command: Callable[..., None]) -> Callable[..., None]:
    """Annotate the parameters of a command for Typer as options.toml describes them."""
    descriptions = _DESCRIPTIONS["shared"] | _DESCRIPTIONS.get(command.__name__, {})
    for name, hint in get_type_hints(command).items():
        if name != "return":
            settings = dict(descriptions[name])
            kind = Argument if settings.pop("is_argument", False) else Option
            flags = settings.pop("flags", [])
            command.__annotations__[name] = Annotated[hint, kind(*flags, **settings)]
    return command


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
