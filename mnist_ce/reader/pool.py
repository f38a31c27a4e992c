"""Preprocessing of many images in order, by several processes, in bounded memory."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from mnist_ce.reader.components import Box
from mnist_ce.reader.image_io import ImageSource, open_image, to_rgb
from mnist_ce.reader.mnist_like import resize_to_mnist
from mnist_ce.reader.segmentation import Hypothesis, Stages, hypotheses
from mnist_ce.reader.text_lines import Digit, Lattice
from mnist_ce.system.errors import ImageError, ImageTooLargeError
from mnist_ce.system.text import one_line

CHUNK = 16  # images per message between processes


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


def _preprocess_chunk(
    sources: list[ImageSource], options: PreprocessOptions
) -> list[PreprocessedImage]:
    return [preprocess(source, options) for source in sources]


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C


class PreprocessPool:
    """A pool of processes that preprocess images; with 0 or 1 this process does the work.

    `chunk` is the number of images per message to a process.
    """

    def __init__(self, num_processes: int = 0, chunk: int = CHUNK) -> None:
        self._pool: ProcessPoolExecutor | None = None
        self._chunk = chunk
        self._max_pending = 4 * num_processes
        if num_processes > 1:
            # Not fork: torch's threads may hold locks that a forked child would wait for.
            self._pool = ProcessPoolExecutor(
                num_processes, mp_context=get_context("spawn"), initializer=_ignore_interrupts
            )
            for _ in range(num_processes):  # start them now, while the parent loads the network
                self._pool.submit(_preprocess_chunk, [], PreprocessOptions())

    def __enter__(self) -> PreprocessPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=kind is None, cancel_futures=True)

    def preprocess_all(
        self, sources: Iterable[ImageSource], options: PreprocessOptions
    ) -> Iterator[PreprocessedImage]:
        """Yield the result for each source, in order, reading only a little ahead."""
        if self._pool is None:
            for source in sources:
                yield preprocess(source, options)
            return
        remaining = iter(sources)
        pending: deque[Future[list[PreprocessedImage]]] = deque()
        while True:
            while len(pending) < self._max_pending and (
                chunk := list(islice(remaining, self._chunk))
            ):
                pending.append(self._pool.submit(_preprocess_chunk, chunk, options))
            if not pending:
                return
            yield from pending.popleft().result()
