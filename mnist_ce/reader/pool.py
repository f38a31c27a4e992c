"""Preprocessing of many images in order, by several processes, in bounded memory."""

from __future__ import annotations

import contextlib
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from mnist_ce.reader.geometry import Box
from mnist_ce.reader.image_io import ImageSource, open_image
from mnist_ce.reader.pixels import resize_to_mnist, to_rgb
from mnist_ce.reader.segmentation import Hypothesis, Stages, hypotheses
from mnist_ce.reader.text_lines import Digit, Lattice
from mnist_ce.system.errors import ImageError, ImageTooLargeError
from mnist_ce.system.text import one_line

NUM_AHEAD = 4  # images per process that are read before the first of them is taken
MAX_SECONDS = 10.0  # a photograph of a page takes 1 or 2
MAX_MEMORY_BYTES = 1 << 30  # of a process, 180 MB of which are libraries
TOO_MUCH = "preprocessing the image took too much memory or time"

T = TypeVar("T")


@dataclass(frozen=True)
class PreprocessOptions:
    """How each image is preprocessed; without `crop` the whole image is resized to 28×28."""

    crop: bool = True
    multi: bool = False  # find every digit of a row, from left to right
    keep_stages: bool = False
    keep_image: bool = False


@dataclass
class PreprocessedImage:
    """What an image may show; without hypotheses it has no foreground, or could not be read."""

    path: str | None
    hypotheses: list[Hypothesis] = field(default_factory=list)
    error: str | None = None
    is_too_large: bool = False  # which is the error then
    stages: Stages = field(default_factory=dict)  # those common to all hypotheses
    image: Image.Image | None = None  # where it is kept: RGB, with its `full_size`


def preprocess(source: ImageSource, options: PreprocessOptions) -> PreprocessedImage:
    """Read and segment one image; whatever fails is returned as its `error`, not raised."""
    result = PreprocessedImage(str(source) if isinstance(source, (str, Path)) else None)
    name = result.path or "the image"
    try:
        image = open_image(source)
        if options.keep_image:
            result.image = to_rgb(image)
        if options.crop:
            stages = result.stages if options.keep_stages else None
            result.hypotheses = hypotheses(image, multi=options.multi, stages=stages)
        else:
            pixels = resize_to_mnist(image)
            width, height = image.info["full_size"]
            digit = Digit(pixels, Box(0, 0, height, width))
            result.hypotheses = [Hypothesis([[Lattice.of(digit)]])]
            if options.keep_stages:
                gray = np.asarray(image.convert("L"))
                result.hypotheses[0].stages = {"image": gray, "what the network reads": pixels}
    except ImageError as error:
        result.error, result.is_too_large = str(error), isinstance(error, ImageTooLargeError)
    except MemoryError:
        result.error = f"{name} does not fit into memory"
    except Exception as error:  # a bug, which must not cost the predictions for other images
        reason = f"{type(error).__name__}: {one_line(error)}"
        result.error = f"internal error while preprocessing {name}; please report: {reason}"
    return result


class PreprocessPool:
    """Processes that preprocess images; with 0 or 1 the calling process does the work.

    With `is_limited`, for images of strangers, the work is always done in other processes, and each
    image has `MAX_SECONDS` and `MAX_MEMORY_BYTES`. An image that takes more, or crashes, costs its
    own process, which is replaced, and is not tried again.
    """

    def __init__(self, num_processes: int = 0, *, is_limited: bool = False) -> None:
        num_processes = num_processes if num_processes > 1 else int(is_limited)
        self._is_closed = False
        self._processes = [_Process(is_limited=is_limited) for _ in range(num_processes)]
        self._idle: SimpleQueue[_Process] = SimpleQueue()
        for process in self._processes:
            self._idle.put(process)
        self._threads = ThreadPoolExecutor(max(1, num_processes))  # each waits for a process

    def close(self) -> None:
        """End the processes, whatever they do."""
        self._is_closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            process.kill()

    def preprocess_all(
        self, sources: Iterable[ImageSource], options: PreprocessOptions
    ) -> Iterator[PreprocessedImage]:
        """Yield the result for each source, in order, reading only a little ahead."""
        if not self._processes:
            yield from (preprocess(source, options) for source in sources)
            return
        pending: deque[Future[PreprocessedImage]] = deque()
        # An image per message: three times 600 of 100×100 pixels took 56 s of CPU; with 16 per
        # message 54 s, where equal runs differ by more.
        for source in sources:
            pending.append(self.preprocess(source, options))
            if len(pending) >= NUM_AHEAD * len(self._processes):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    def preprocess(
        self, source: ImageSource, options: PreprocessOptions
    ) -> Future[PreprocessedImage]:
        """Read and segment one image in a process; whatever fails is the result's `error`."""

        def preprocessed() -> PreprocessedImage:
            try:
                return self._call(preprocess, source, options)
            except ImageError as error:
                path = str(source) if isinstance(source, (str, Path)) else None
                return PreprocessedImage(path, error=str(error))

        return self._threads.submit(preprocessed)

    def submit(self, function: Callable[..., T], *args: object) -> Future[T]:
        """Call a function, found by its name, in a process.

        Its errors are the future's. One that breaks a limit or the process is an ImageError.
        """
        return self._threads.submit(self._call, function, *args)

    def _call(self, function: Callable[..., T], *args: object) -> T:
        process = self._idle.get()
        try:
            result: T | Exception = process.call(function, args)
        except Exception as error:
            process.kill()
            if not self._is_closed:
                process.start()
            if isinstance(error, (EOFError, OSError)):  # it has ended, or its time is up
                raise ImageError(TOO_MUCH) from None
            raise
        finally:
            self._idle.put(process)
        if isinstance(result, Exception):
            raise ImageError(TOO_MUCH) if isinstance(result, MemoryError) else result
        return result


class _Process:
    def __init__(self, *, is_limited: bool) -> None:
        self._is_limited = is_limited
        self.start()

    def start(self) -> None:
        # Not fork: torch's threads may hold locks that a forked child would wait for.
        context = get_context("spawn")
        self._connection, connection = context.Pipe()
        self._max_seconds = MAX_SECONDS if self._is_limited else None
        arguments = (connection, MAX_MEMORY_BYTES if self._is_limited else None)
        process = context.Process(target=_serve, args=arguments, daemon=True)
        process.start()
        connection.close()  # so that the connection ends with the process
        self.kill = process.kill

    def call(self, *call: object) -> Any:  # noqa: ANN401
        self._connection.recv()  # it is ready: the time begins when its imports are done
        self._connection.send(call)
        if not self._connection.poll(self._max_seconds):
            raise TimeoutError
        return self._connection.recv()


def _serve(connection: Connection, max_memory_bytes: int | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    if max_memory_bytes is not None:
        with contextlib.suppress(ImportError, ValueError, OSError):  # Windows, or a lower limit
            import resource

            resource.setrlimit(resource.RLIMIT_DATA, (max_memory_bytes, max_memory_bytes))
    with contextlib.suppress(EOFError, OSError):  # the parent has ended
        while True:
            connection.send("ready")
            function, args = connection.recv()
            try:
                result = function(*args)
            except Exception as error:
                result = error
            connection.send(result)
