"""Printing: results to stdout, messages to stderr. What a command prints passes here."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import typer

from mnist_ce.system.distributed import is_main
from mnist_ce.system.files import write_atomically
from mnist_ce.system.notebook import printed_by
from mnist_ce.system.text import sanitize


class _LoadingLine:
    """Finds no module, but says on a terminal that torch is imported, until a line is printed."""

    text = ""

    def find_spec(self, name: str, *_: object) -> None:
        if name == "torch" and sys.stderr.isatty():
            self.text = "loading torch …"
            print(end=self.text, file=sys.stderr, flush=True)  # noqa: T201

    def erase(self) -> None:
        if self.text:
            print(end=f"\r{' ' * len(self.text)}\r", file=sys.stderr, flush=True)  # noqa: T201
            self.text = ""


_LOADING = _LoadingLine()


def echo(text: str = "", *, label: str = "", err: bool = False, nl: bool = True) -> None:
    """Print lines without what could control the terminal, since names in them may be anyone's."""
    _LOADING.erase()
    stream = sys.stderr if err else sys.stdout  # named, or click would write UTF-8 into ASCII
    typer.echo(label + "\n".join(map(sanitize, text.split("\n"))), stream, nl)


def note(text: str) -> None:
    echo(text, err=True)


def warn(text: str) -> None:
    _print_message("warning:", "yellow", text)


def error(text: str) -> None:
    _print_message("error:", "red", text)


def _print_message(label: str, colour: str, text: str) -> None:
    """Print one line; the colour shows on a terminal only, and not with `NO_COLOR` set."""
    if not os.environ.get("NO_COLOR"):
        label = typer.style(label, fg=colour, bold=True)
    echo(" ".join(text.splitlines()), label=f"{label} ", err=True)


def show(as_json: bool, document: Callable[[], Any], print_text: Callable[[], object]) -> None:
    """Print a result: as one JSON document, or as text."""
    if as_json:
        print_json(document())
    else:
        print_text()


def print_json(document: Any) -> None:  # noqa: ANN401 - whatever JSON can hold
    echo(json_text(document, indent=2))


def json_text(document: Any, indent: int | None = None) -> str:  # noqa: ANN401
    """Return JSON, in ASCII if stdout cannot encode it or it could control the terminal."""
    text = json.dumps(document, indent=indent, ensure_ascii=False, allow_nan=False)
    with contextlib.suppress(UnicodeEncodeError):
        text.encode(sys.stdout.encoding or "utf-8")
        if text.replace("\n", "").isprintable():
            return text
    return json.dumps(document, indent=indent, allow_nan=False)


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)  # None: empty
    return buffer.getvalue()


def print_table(rows: Sequence[Sequence[str]], align: str, optional: Sequence[int] = ()) -> None:
    """Print rows of cells; `align` has for each column `<` (left) or `>` (right).

    On a terminal that is too narrow, columns are left out in the order of `optional`.
    """
    columns = [[sanitize(cell) for cell in column] for column in zip(*rows, strict=True)]
    widths = {number: max(map(len, column)) for number, column in enumerate(columns)}
    for number in optional:
        if sum(widths.values()) + 2 * (len(widths) - 1) > _width():
            del widths[number]
    for row in zip(*columns, strict=True):
        cells = (f"{row[number]:{align[number]}{width}}" for number, width in widths.items())
        echo("  ".join(cells).rstrip())


def _width() -> int:
    """Return the characters in a line of the terminal; a number above any line elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize


def wrap(line: str, hanging: int) -> str:
    """Break a line between words where the terminal ends."""
    look: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
    return textwrap.fill(line, _width() - 1, subsequent_indent=" " * hanging, **look)


def write_plot(path: Path, png: bytes) -> None:
    write_atomically(path, png)
    note(f"drawn in {path}")


@contextlib.contextmanager
def printing() -> Iterator[None]:
    """Print what the package logs at level INFO or above.

    From now on a character that stdout cannot encode becomes an escape, as on stderr.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.meta_path.insert(0, _LOADING)
    try:
        with printed_by(_TerminalHandler()):
            yield
    finally:
        sys.meta_path.remove(_LOADING)
        _LOADING.erase()


class _TerminalHandler(logging.Handler):
    """Prints log records in the main process: warnings with a label, the rest as plain lines."""

    def emit(self, record: logging.LogRecord) -> None:
        if is_main():
            (warn if record.levelno >= logging.WARNING else note)(record.getMessage())
