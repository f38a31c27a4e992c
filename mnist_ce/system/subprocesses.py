"""The end of a process, and Python processes that Ctrl-C does not reach."""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn


def start_process(
    function: Callable[..., object],
    *args: object,
    **options: Any,  # noqa: ANN401 - of `Popen`
) -> subprocess.Popen[bytes]:
    """Call a function, found by its name, in a new process; more may follow through its stdin.

    Ctrl-C is for the process that starts it. Not multiprocessing, which imports the user's main
    module or forks torch's threads, and has a further process that outlives the command.
    """
    code = (
        "import pickle, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); "
        f"sys.path[:] = {[*map(str, sys.path)]}; "
        "function, args = pickle.load(sys.stdin.buffer); function(*args); "
        f"from {__name__} import end_process; end_process(0)"
    )
    with sigint_blocked():
        # Without the current folder, where any file may be named like a module.
        command = [sys.executable, "-P", "-c", code]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, **options)
    assert process.stdin is not None
    process.stdin.write(pickle.dumps((function, args)))
    process.stdin.flush()
    return process


@contextlib.contextmanager
def sigint_blocked() -> Iterator[None]:
    """Let SIGINT wait; a process that starts meanwhile never gets it, not even at first."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_process(code: int) -> NoReturn:
    """End this process without taking torch apart, which takes 1.6 s."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it
            stream.flush()
    os._exit(code)
