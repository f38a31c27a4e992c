"""What the package logs, printed as lines for people."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator

from mnist_ce.system.distributed import is_main
from mnist_ce.system.text import sanitize

logger = logging.getLogger("mnist_ce")


class LinePrinter(logging.Handler):
    """Prints logs to Python's users; root handlers, where there are any, get the warnings alone."""

    def emit(self, record: logging.LogRecord) -> None:
        is_warning, root = record.levelno >= logging.WARNING, logging.getLogger()
        if is_warning and root.handlers:
            root.handle(record)
        elif is_main():
            stream = sys.stdout if is_notebook() else sys.stderr  # red in a notebook
            print("warning: " * is_warning + sanitize(record.getMessage()), file=stream, flush=True)


def is_notebook() -> bool:
    return "ipykernel" in sys.modules


@contextlib.contextmanager
def printed_by(handler: logging.Handler, *, propagate: bool = True) -> Iterator[None]:
    """Let a handler print what is logged at level INFO or above."""
    level, propagates = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = propagate
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagates
