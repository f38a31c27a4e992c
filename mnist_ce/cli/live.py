"""The page of a run while it is trained, served by a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import webbrowser
from pathlib import Path
from typing import IO
from urllib.parse import quote

from tqdm import tqdm

from mnist_ce.cli.demo import PACKAGES
from mnist_ce.system.errors import require
from mnist_ce.training.callbacks import Callback, RunInfo


class LivePage(Callback):
    """Serves the page of the run that starts, at low priority, until it ends."""

    def __init__(self, *, opens_browser: bool) -> None:
        require(*PACKAGES, extra="demo")
        self.opens_browser = opens_browser
        self.process: subprocess.Popen[bytes] | None = None

    def on_start(self, info: RunInfo) -> None:
        # Modules come from where this process has them, but never from the current folder, where
        # any file may be named like one; only the package itself may lie there.
        package, here = str(Path(__file__).parents[2]), ("", str(Path.cwd()))
        paths = [path for path in sys.path if path == package or path not in here]
        code = f"import sys; sys.path[:] = {paths!r}; from mnist_ce.__main__ import run; run()"
        command = [sys.executable, "-P", "-c", code, "demo", "--no-browser", "--port", "0"]
        command += ["--threads", "1", "--output", str(info.run.path.parent), "--until-stdin-ends"]
        # In a session of its own, since Ctrl-C is for the training, which then ends this process.
        # If the training is killed, the pipe ends.
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True)
        if hasattr(os, "setpriority"):
            os.setpriority(os.PRIO_PROCESS, self.process.pid, 10)
        arguments = (self.process.stdout, info.run.name)
        self.thread = threading.Thread(target=self._show_address, args=arguments, daemon=True)
        self.thread.start()

    def _show_address(self, stdout: IO[bytes], run: str) -> None:
        if line := stdout.readline().decode().strip():
            address = f"{line}#runs={quote(run)}"
            tqdm.write(f"live page: {address}", file=sys.stderr)  # above a bar
            if self.opens_browser:
                webbrowser.open(address)

    def close(self) -> None:
        if self.process is not None:
            with self.process:
                self.process.terminate()
                self.thread.join()
