"""Printing: results to stdout, messages to stderr."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import typer

from mnist_ce.system.distributed import is_main
from mnist_ce.system.files import write_atomically


def note(text: str) -> None:
    typer.echo(text, err=True)


def warn(text: str) -> None:
    note(f"{label('warning:', 'yellow')} {text}")


def error(text: str) -> None:
    note(f"{label('error:', 'red')} {text}")


def label(text: str, colour: str) -> str:
    """Return a text in a colour, which shows on a terminal only, and not with `NO_COLOR` set."""
    return text if os.environ.get("NO_COLOR") else typer.style(text, fg=colour, bold=True)


def print_json(document: Any) -> None:  # noqa: ANN401 - whatever JSON can hold
    """Print one JSON document to stdout."""
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))


def print_table(rows: Sequence[Sequence[str]], align: str) -> None:
    """Print rows of cells; `align` has for each column `<` (left) or `>` (right)."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = zip(row, align, widths, strict=True)
        typer.echo("  ".join(f"{cell:{side}{width}}" for cell, side, width in cells).rstrip())


def write_plot(path: Path, png: bytes) -> None:
    """Write the file of the option `--plot`."""
    write_atomically(path, png)
    note(f"drawn in {path}")


def is_terminal() -> bool:
    """Whether stderr is a terminal, on which a progress bar can be drawn."""
    return sys.stderr.isatty()


@contextlib.contextmanager
def logging_to_terminal() -> Iterator[None]:
    """Print what the package logs at level INFO or above."""
    logger, handler = logging.getLogger("mnist_ce"), _TerminalHandler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class _TerminalHandler(logging.Handler):
    """Prints log records in the main process: warnings with a label, the rest as plain lines."""

    def emit(self, record: logging.LogRecord) -> None:
        if is_main():
            (warn if record.levelno >= logging.WARNING else note)(record.getMessage())
