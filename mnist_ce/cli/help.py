"""How a command explains itself: plain text in groups that fits 80 columns."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

__all__ = ["GroupedCommand"]

_HEADINGS = {
    "Recipe": ("config", "epochs", "batch_size", "lr", "momentum", "seed", "assignments"),
    "Data and device": ("dataset", "data_dir", "mirror", "device", "threads", "step"),
    "Run": ("output", "name", "resume", "dry_run", "tensorboard"),
}
_HEADING_OF = {name: heading for heading, names in _HEADINGS.items() for name in names}


class GroupedCommand(TyperCommand):
    """A command that shows its options in groups, as Typer does with Rich only, in boxes."""

    # Context and HelpFormatter belong to the click that Typer carries, in no promised place.
    def format_options(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401
        """Write arguments and options, each group under its heading, other options last."""
        headings = ("Arguments", *_HEADINGS, "Options")
        groups: dict[str, list[tuple[str, str]]] = {heading: [] for heading in headings}
        for parameter in self.get_params(ctx):
            is_argument = parameter.param_type_name == "argument"
            rest = "Arguments" if is_argument else "Options"
            if (record := parameter.get_help_record(ctx)) is not None:
                groups[_HEADING_OF.get(str(parameter.name), rest)].append(record)
        for heading, records in groups.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)
