"""`python -m mnist_ce` is the same as `mnist-ce`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn


def run() -> NoReturn:
    """Run the command of this process, and end it."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # the process began with it closed
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
    # Before NumPy is loaded, whose products here are small; processes that are started inherit it.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        from mnist_ce.cli import main

        code = main()
    except KeyboardInterrupt:  # before `main` could
        code = 130
    from mnist_ce.system.subprocesses import end_process

    end_process(code)


if __name__ == "__main__":
    run()
