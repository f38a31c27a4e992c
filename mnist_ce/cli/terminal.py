"""What surrounds a training: signals that stop it, a page that shows it, what comes next."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import signal
import subprocess
import textwrap
import threading
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import quote

from mnist_ce.cli.demo import PACKAGES
from mnist_ce.cli.printing import note, warn
from mnist_ce.runs.groups import recipe_settings
from mnist_ce.runs.records import RunRecord
from mnist_ce.system.distributed import is_main
from mnist_ce.system.errors import require
from mnist_ce.system.subprocesses import start_process
from mnist_ce.training.callbacks import Callback, RunInfo, StopFlag, TrainResult

ABOUT_DEFAULT = (
    "The default recipe is that of the lessons: 57 % after its first epoch. In the\n"
    "time of its nine epochs, mnist-ce train --config fast reaches 98.9 %."
)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """Stop training after the current batch on the first SIGINT or SIGTERM, at once on the second.

    Where no training loop runs, nothing needs saving, and the first one stops at once. A signal
    that is ignored on entry (as by a shell for a command that ends in &) stays ignored.
    """
    stop = StopFlag()

    def on_signal(number: int, frame: FrameType | None) -> None:
        if stop.signal_number is not None or not stop.is_checked:
            raise SystemExit(128 + number)  # not an Exception, which could be caught as an error
        stop.signal_number = number

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    handled = [number for number, handler in before.items() if handler != signal.SIG_IGN]
    try:
        for number in handled:
            signal.signal(number, on_signal)
        yield stop
    except SystemExit:
        if is_main():
            warn("stopped at once; what was saved last is intact")
        raise
    finally:
        for number in handled:
            signal.signal(number, before[number])


class LivePage(Callback):
    """Serves the page of the run that starts, at low priority, until it ends."""

    def __init__(self, *, opens_browser: bool) -> None:
        require(*PACKAGES, extra="demo")
        self.opens_browser = opens_browser
        self.process: subprocess.Popen[bytes] | None = None

    def on_start(self, info: RunInfo) -> None:
        # In a session of its own, since Ctrl-C is for the training, which then ends this process.
        options: dict[str, Any] = {"stdout": subprocess.PIPE, "start_new_session": True}
        self.process = start_process(_serve, str(info.run.path.parent), **options)
        if hasattr(os, "setpriority"):
            os.setpriority(os.PRIO_PROCESS, self.process.pid, 10)
        if line := (self.process.stdout or io.BytesIO()).readline().decode().strip():
            address = f"{line}#runs={quote(info.run.name)}"
            note(f"live page: {address}")
            if self.opens_browser:
                webbrowser.open(address)

    def close(self) -> None:
        if self.process is not None:
            with self.process:
                self.process.terminate()


def _serve(output: str) -> None:
    """Serve the page until stdin ends, as it does where the training is killed."""
    from mnist_ce.cli import main

    def stop_after_stdin() -> None:
        os.read(0, 1)  # sys.stdin would be locked at the end of the interpreter
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_after_stdin, daemon=True).start()
    main(["demo", "--no-browser", "--port", "0", "--threads", "1", "--output", output])


def print_next_steps(result: TrainResult) -> None:
    run, record = result.run, result.record
    if images := ", ".join(sorted(path.name for path in run.path.glob("*.png"))):
        note(textwrap.fill(f"images in {run.path}: {images}", 79, break_on_hyphens=False))
    if record.dataset == "mnist" and recipe_settings(record) == recipe_settings(RunRecord()):
        note(ABOUT_DEFAULT)
    name = shlex.quote(run.name if run.path.parent == Path("checkpoints") else str(run.path))
    note(
        "next, for curves and mistakes on one page, errors by class, and an image:\n"
        f"  mnist-ce report {name}\n"
        f"  mnist-ce evaluate {name}\n"
        f"  mnist-ce predict examples/seven.jpg --checkpoint {name}"
    )
