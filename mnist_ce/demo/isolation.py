"""Work on untrusted images in processes of their own, each call with a limit of time and memory."""

from __future__ import annotations

import contextlib
import io
import signal
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import get_context
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

from mnist_ce.reader.image_io import open_image
from mnist_ce.reader.pool import preprocess as preprocess  # so that each process has it at once
from mnist_ce.system.errors import ImageError

MAX_SECONDS = 10.0  # a photograph of a page takes 1 or 2
MAX_MEMORY_BYTES = 1 << 30  # of a process, 180 MB of which are libraries
TOO_MUCH = "preprocessing the image took too much memory or time"

P = ParamSpec("P")
T = TypeVar("T")


class IsolatedPool:
    """Processes that decode images, from the header on.

    A call that hangs, crashes or fills the memory fails with an ImageError and is not tried again.
    It costs its own process alone, which is replaced.
    """

    def __init__(self, num_processes: int) -> None:
        self._threads = ThreadPoolExecutor(num_processes)  # each waits for one process
        self._idle: SimpleQueue[_Process] = SimpleQueue()
        self._processes: set[_Process] = set()
        self._is_closed = False
        for _ in range(num_processes):
            self._start_process()

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Call a function, found by its name, in the next idle process."""
        return self._threads.submit(self._call, function, args, kwargs)

    def close(self) -> None:
        """End the processes, whatever they do."""
        self._is_closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in tuple(self._processes):
            process.kill()

    def _start_process(self) -> None:
        process = _Process()
        self._processes.add(process)
        self._idle.put(process)

    def _call(self, *call: object) -> Any:  # noqa: ANN401
        process = self._idle.get()
        try:
            result = process.call(call)
        except (EOFError, OSError):  # it has ended, or its time is up
            process.kill()
            self._processes.remove(process)
            if not self._is_closed:
                self._start_process()
            raise ImageError(TOO_MUCH) from None
        self._idle.put(process)
        if isinstance(result, MemoryError):
            raise ImageError(TOO_MUCH)
        if isinstance(result, Exception):
            raise result
        return result


class _Process:
    def __init__(self) -> None:
        # Not fork: torch's threads may hold locks that a forked child would wait for.
        context = get_context("spawn")
        self.connection, connection = context.Pipe()
        self.process = context.Process(target=_serve, args=[connection], daemon=True)
        self.process.start()
        connection.close()  # so that the connection ends with the process
        self.kill = self.process.kill

    def call(self, call: tuple[object, ...]) -> object:
        self.connection.recv()  # it is ready: the time does not begin before its imports are done
        self.connection.send(call)
        if not self.connection.poll(MAX_SECONDS):
            raise TimeoutError
        return self.connection.recv()


def _serve(connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows, or a lower limit
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    with contextlib.suppress(EOFError):  # the server has ended
        while True:
            connection.send("ready")
            function, args, kwargs = connection.recv()
            try:
                result = function(*args, **kwargs)
            except Exception as error:
                result = error
            connection.send(result)


def to_png(content: bytes) -> bytes:
    """Return an image encoded anew, upright and without its metadata."""
    image = open_image(content)
    if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
        image = image.convert("RGB")
    buffer = io.BytesIO()
    image.save(buffer, "PNG", icc_profile=None)
    return buffer.getvalue()
