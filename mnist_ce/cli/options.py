"""Options that several commands share, and how results and messages are printed.

Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from mnist_ce.system.distributed import is_main

__all__ = [
    "Checkpoint",
    "CheckpointArgument",
    "DataDir",
    "Device",
    "InputMean",
    "InputStd",
    "Json",
    "Output",
    "Threads",
    "Traceback",
    "is_terminal",
    "label",
    "logging_to_terminal",
    "note",
    "print_json",
    "warn",
]

INPUT = "Input"
RESULT = "Result"
COMPUTATION = "Computation"

CHECKPOINT_HELP = "A run's name or folder, a state_dict file, or 'pretrained'."
NO_CHECKPOINT = "the newest finished multi-class run, else the shipped weights"

Checkpoint = Annotated[
    str | None,
    typer.Option(help=CHECKPOINT_HELP, metavar="FILE", show_default=NO_CHECKPOINT),
]
CheckpointArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[RUN or CHECKPOINT]",
        help=f"{CHECKPOINT_HELP} Default: {NO_CHECKPOINT}.",
        show_default=False,
    ),
]
DataDir = Annotated[
    str | None,
    typer.Option(
        help="Folder of the datasets (also MNIST_CE_DATA_DIR).",
        show_default="data",
        metavar="DIR",
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.", metavar="DEVICE")]
Threads = Annotated[int, typer.Option(min=0, help="CPU threads; 0: as torch chooses.", metavar="N")]
Output = Annotated[str, typer.Option(help="Folder that holds the runs.", metavar="DIR")]
InputMean = Annotated[
    float, typer.Option(help="For foreign networks: input is (pixel/255 - mean) / std.")
]
InputStd = Annotated[float, typer.Option(help="See --input-mean.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def _keep_traceback(value: bool) -> bool:
    if value:
        Traceback_.wanted = True
    return value


class Traceback_:  # noqa: N801 - the option's own switch
    """Whether `--traceback` was given."""

    wanted = False


Traceback = Annotated[
    bool,
    typer.Option(
        "--traceback", help="Show where in the code an error arose.", callback=_keep_traceback
    ),
]


def note(text: str) -> None:
    """Print a line about what goes on."""
    typer.echo(text, err=True)


def warn(text: str) -> None:
    """Print a warning that stands out on a terminal."""
    typer.echo(f"{label('warning:', 'yellow')} {text}", err=True)


class TerminalHandler(logging.Handler):
    """Prints log records to stderr: warnings with a label, the rest as plain lines."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record, in the main process of several only."""
        if is_main():
            (warn if record.levelno >= logging.WARNING else note)(record.getMessage())


@contextlib.contextmanager
def logging_to_terminal() -> Iterator[None]:
    """Print what the package logs at level INFO or above."""
    logger, handler = logging.getLogger("mnist_ce"), TerminalHandler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def label(text: str, colour: str) -> str:
    """Return a text in colour, which is only shown on a terminal, and not with `NO_COLOR` set."""
    return text if os.environ.get("NO_COLOR") else typer.style(text, fg=colour, bold=True)


def print_json(document: Any) -> None:  # noqa: ANN401 - whatever JSON can hold
    """Print one JSON document to stdout."""
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))


def is_terminal() -> bool:
    """Whether stderr is a terminal, so that a progress bar can be drawn."""
    return sys.stderr.isatty()
