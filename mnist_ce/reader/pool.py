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
from typing import Any, ParamSpec, TypeVar

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

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class PreprocessOptions:
    """How each image is preprocessed; without `crop` the whole image is resized to 28×28."""

    crop: bool = True
    multi: bool = False
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
    image: Image.Image | None = None  # RGB, with its `full_size`


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
        self._is_limited, self._is_closed = is_limited, False
        self._num_processes = num_processes if num_processes > 1 else int(is_limited)
        self._idle: SimpleQueue[_Process] = SimpleQueue()
        self._processes: set[_Process] = set()
        if self._num_processes:
            self._threads = ThreadPoolExecutor(self._num_processes)  # each waits for a process
        for _ in range(self._num_processes):
            self._start_process()

    def __enter__(self) -> PreprocessPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes, whatever they do."""
        self._is_closed = True
        if self._num_processes:
            self._threads.shutdown(wait=False, cancel_futures=True)
        for process in tuple(self._processes):
            process.kill()

    def preprocess_all(
        self, sources: Iterable[ImageSource], options: PreprocessOptions
    ) -> Iterator[PreprocessedImage]:
        """Yield the result for each source, in order, reading only a little ahead."""
        if not self._num_processes:
            for source in sources:
                yield preprocess(source, options)
            return
        pending: deque[Future[PreprocessedImage]] = deque()
        for source in sources:
            pending.append(self.preprocess(source, options))
            if len(pending) >= NUM_AHEAD * self._num_processes:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    def preprocess(
        self, source: ImageSource, options: PreprocessOptions
    ) -> Future[PreprocessedImage]:
        """Read and segment one image in a process; whatever fails is the result's `error`."""
        return self._threads.submit(self._preprocess, source, options)

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Call a function, found by its name, in a process.

        Its errors are the future's. One that breaks a limit or the process is an ImageError.
        """
        return self._threads.submit(self._call, function, args, kwargs)

    def _preprocess(self, source: ImageSource, options: PreprocessOptions) -> PreprocessedImage:
        try:
            result: PreprocessedImage = self._call(preprocess, (source, options), {})
        except ImageError as error:
            path = str(source) if isinstance(source, (str, Path)) else None
            return PreprocessedImage(path, error=str(error))
        return result

    def _start_process(self) -> None:
        process = _Process(is_limited=self._is_limited)
        self._processes.add(process)
        self._idle.put(process)

    def _call(self, *call: object) -> Any:  # noqa: ANN401
        process = self._idle.get()
        try:
            result = process.call(call)
        except Exception as error:
            process.kill()
            self._processes.remove(process)
            if not self._is_closed:
                self._start_process()
            if isinstance(error, (EOFError, OSError)):  # it has ended, or its time is up
                raise ImageError(TOO_MUCH) from None
            raise
        self._idle.put(process)
        if isinstance(result, MemoryError):
            raise ImageError(TOO_MUCH)
        if isinstance(result, Exception):
            raise result
        return result


class _Process:
    def __init__(self, *, is_limited: bool) -> None:
        # Not fork: torch's threads may hold locks that a forked child would wait for.
        context = get_context("spawn")
        self._max_seconds = MAX_SECONDS if is_limited else None
        self._connection, connection = context.Pipe()
        arguments = (connection, MAX_MEMORY_BYTES if is_limited else None)
        process = context.Process(target=_serve, args=arguments, daemon=True)
        process.start()
        connection.close()  # so that the connection ends with the process
        self.kill = process.kill

    def call(self, call: tuple[object, ...]) -> object:
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
            function, args, kwargs = connection.recv()
            try:
                result = function(*args, **kwargs)
            except Exception as error:
                result = error
            connection.send(result)
