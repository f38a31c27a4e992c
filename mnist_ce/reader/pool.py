"""Preprocessing of images in processes of their own, each with a limit of time and memory."""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from mnist_ce.reader.geometry import Box
from mnist_ce.reader.image_io import ImageSource, open_pages, read_file
from mnist_ce.reader.pixels import resize_to_mnist, to_rgb
from mnist_ce.reader.segmentation import Hypothesis, Stages, hypotheses
from mnist_ce.reader.text_lines import Digit, Lattice
from mnist_ce.system.errors import ImageError, ImageTooLargeError
from mnist_ce.system.subprocesses import start_process
from mnist_ce.system.text import one_line

NUM_AHEAD = 4  # images per process that are read before the first of them is taken
MAX_SECONDS = 8.0  # of CPU; a photograph of a page takes 1 or 2
MAX_MEMORY_BYTES = 1300 << 20  # of a process, 180 MB of which are libraries
TOO_MUCH = "preprocessing the image took too much memory or time"

T = TypeVar("T")


@dataclass(frozen=True)
class PreprocessOptions:
    """How each image is preprocessed; without `crop` the whole image is resized to 28×28."""

    crop: bool = True
    multi: bool | None = False  # find every digit of a row, from left to right
    keep_stages: bool = False
    keep_image: bool = False


@dataclass
class PreprocessedImage:
    """What a page may show; without hypotheses it has no foreground, or could not be read."""

    path: str | None
    hypotheses: list[Hypothesis] = field(default_factory=list)
    error: str | None = None
    is_too_large: bool = False  # which is the error then
    stages: Stages = field(default_factory=dict)  # those common to all hypotheses
    image: Image.Image | None = None  # where it is kept: RGB, with its `full_size`
    source: ImageSource = b""  # of the first page: to preprocess all pages again
    page: int | None = None  # from 1; None where the image has one alone
    truth: str | None = None  # its class in a dataset


def preprocess(
    source: ImageSource, options: PreprocessOptions, path: str | None = None
) -> list[PreprocessedImage]:
    """Preprocess the pages of an image, all of them within `MAX_SECONDS`."""
    results, name = list[PreprocessedImage](), path or "the image"
    try:
        for number, page in open_pages(source, name, MAX_SECONDS):
            results.append(PreprocessedImage(path, page=number))
            _preprocess_page(page, options, results[-1], name)
    except ImageError as error:  # it cannot be opened
        results.append(PreprocessedImage(path, error=str(error)))
    if len(results) == 1:
        results[0].page = None
    return results or [PreprocessedImage(path, error=f"{name} was changed, or {TOO_MUCH}")]


def _preprocess_page(
    page: Image.Image | ImageError, options: PreprocessOptions, result: PreprocessedImage, name: str
) -> None:
    try:
        if isinstance(page, ImageError):
            raise page
        if options.keep_image:
            result.image = to_rgb(page)
        if options.crop:
            stages = result.stages if options.keep_stages else None
            result.hypotheses = hypotheses(page, multi=bool(options.multi), stages=stages)
        else:
            pixels = resize_to_mnist(page)
            width, height = page.info["full_size"]
            digit = Digit(pixels, Box(0, 0, height, width))
            result.hypotheses = [Hypothesis([[Lattice.of(digit)]])]
            if options.keep_stages:
                gray = np.asarray(page.convert("L"))
                result.hypotheses[0].stages = {"image": gray, "what the network reads": pixels}
    except ImageError as error:
        result.error, result.is_too_large = str(error), isinstance(error, ImageTooLargeError)
    except MemoryError:
        result.error = f"{name} does not fit into memory"
    except Exception as error:  # a bug, which must not cost the predictions for other images
        reason = f"{type(error).__name__}: {one_line(error)}"
        result.error = f"internal error while preprocessing {name}; please report: {reason}"


class PreprocessPool:
    """Processes that preprocess images, each started when it is first needed.

    An image has `MAX_SECONDS` and `MAX_MEMORY_BYTES`. One that takes more, or crashes, costs its
    process, which is replaced, and is not tried again. So does one whose future is cancelled,
    which can be at any time.
    """

    def __init__(self, num_processes: int) -> None:
        self._num_processes = num_processes
        self._started: set[subprocess.Popen[bytes]] = set()
        # As many as threads. The last one is used first; None is to be started.
        self._idle = deque[subprocess.Popen[bytes] | None]([None] * num_processes)
        self._threads = ThreadPoolExecutor(num_processes)  # each waits for a process

    def close(self) -> None:
        """End the processes, whatever they do; later calls start new ones."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._threads = ThreadPoolExecutor(self._num_processes)
        for process in list(self._started):
            self._end(process)

    def preprocess_all(
        self, sources: Iterable[ImageSource], options: PreprocessOptions
    ) -> Iterator[list[PreprocessedImage]]:
        """Yield the pages of each source, in order, reading only a little ahead."""
        pending: deque[Future[list[PreprocessedImage]]] = deque()
        try:
            for source in sources:
                pending.append(self.preprocess(source, options))
                if len(pending) >= NUM_AHEAD * self._num_processes:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:  # so that the end of the program waits for no image
                future.cancel()

    def preprocess(
        self, source: ImageSource, options: PreprocessOptions
    ) -> Future[list[PreprocessedImage]]:
        def preprocessed(future: Future[list[PreprocessedImage]]) -> list[PreprocessedImage]:
            path = str(source) if isinstance(source, (str, Path)) else None
            try:
                content = source if path is None else read_file(path)
                if isinstance(content, bytes):
                    images = self._call(future, preprocess, content, options, path)
                else:
                    images = preprocess(content, options)  # decoded already: to send takes longer
            except ImageError as error:
                return [PreprocessedImage(path, error=str(error))]
            if any(h.may_be_several for image in images for h in image.hypotheses):
                is_pipe = path is not None and not Path(path).is_file()
                images[0].source = content if is_pipe else source
            return images

        return self._begin(preprocessed)

    def submit(self, function: Callable[..., T], *args: object) -> Future[T]:
        """Call a function, found by its name, in a process.

        Its errors are the future's. One that breaks a limit or the process is an ImageError.
        """
        return self._begin(lambda future: self._call(future, function, *args))

    def _begin(self, work: Callable[[Future[T]], T]) -> Future[T]:
        future: Future[T] = Future()  # not the executor's, which cannot be cancelled once it runs

        def run() -> None:
            if future.cancelled():
                return
            with contextlib.suppress(InvalidStateError):  # cancelled meanwhile
                try:
                    future.set_result(work(future))
                except Exception as error:
                    future.set_exception(error)

        self._threads.submit(run)
        return future

    def _call(self, future: Future[T], function: Callable[..., T], *args: object) -> T:
        message, threads = pickle.dumps((function, args)), self._threads
        process, put_back = self._idle.pop(), self._idle.append
        try:
            if process is None or process.poll() is not None:
                process = self._start()
            future.add_done_callback(partial(_kill_if_cancelled, process))
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(message)
            process.stdin.flush()
            result: T | Exception = pickle.load(process.stdout)
            if not future.set_running_or_notify_cancel():  # from here on nothing cancels it
                raise EOFError
        except (EOFError, OSError, ValueError, pickle.UnpicklingError):  # it has ended
            if process is not None:
                self._end(process)
            process = self._start() if threads is self._threads else None
            result, put_back = MemoryError(), self._idle.appendleft  # while it starts
        finally:
            put_back(process)
        if isinstance(result, Exception):
            raise ImageError(TOO_MUCH) if isinstance(result, MemoryError) else result
        return result

    def _start(self) -> subprocess.Popen[bytes]:
        process = start_process(serve, MAX_SECONDS, MAX_MEMORY_BYTES, stdout=subprocess.PIPE)
        self._started.add(process)
        return process

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        self._started.discard(process)
        with process:  # closes the pipes and waits
            process.kill()


@cache
def shared_pool() -> PreprocessPool:
    """Return a pool that lasts as long as the program: its processes take time to start."""
    pool = PreprocessPool(os.cpu_count() or 1)
    atexit.register(pool.close)
    return pool


def _kill_if_cancelled(process: subprocess.Popen[bytes], future: Future[Any]) -> None:
    if future.cancelled():
        process.kill()


def serve(max_seconds: float, max_memory_bytes: int) -> None:
    """Call the functions that come through stdin, and write their results to stdout."""
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows, or a lower limit
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (max_memory_bytes, max_memory_bytes))
    calls: SimpleQueue[tuple[Callable[..., object], tuple[object, ...]]] = SimpleQueue()
    threading.Thread(target=_receive, args=(calls,), daemon=True).start()
    while True:
        function, args = calls.get()
        _limit_time(max_seconds)
        try:
            result = function(*args)
        except Exception as error:
            result = error
        _limit_time(0)
        pickle.dump(result, results)
        results.flush()


def _receive(calls: SimpleQueue[Any]) -> None:
    try:
        while True:
            calls.put(pickle.load(sys.stdin.buffer))
    finally:  # the parent has ended
        os._exit(0)


def _limit_time(seconds: float) -> None:
    """End this process after so much CPU time, even while C code runs; 0: do not."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)
    elif seconds:  # Windows: so much time
        faulthandler.dump_traceback_later(seconds, exit=True)
    else:
        faulthandler.cancel_dump_traceback_later()
