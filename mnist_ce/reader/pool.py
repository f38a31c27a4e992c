"""Read and prepare many pictures, in order, on several processes, in bounded memory."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType

import numpy as np

from mnist_ce.reader.image_io import Picture, open_picture
from mnist_ce.reader.mnist_like import whole_picture
from mnist_ce.reader.segmentation import Digit, Reading, Stages, find_digits, light_of
from mnist_ce.system.errors import ImageError
from mnist_ce.system.files import one_line

__all__ = ["Options", "Prepared", "Workers", "prepare"]

CHUNK = 16  # pictures per message between processes


@dataclass(frozen=True)
class Options:
    """What to make of each picture.

    Args:
        crop: Look for digits; otherwise the whole picture is brought to 28×28.
        multi: Look for a row of digits.
        keep_stages: Keep the picture after each stage.
    """

    crop: bool = True
    multi: bool = False
    keep_stages: bool = False


@dataclass
class Prepared:
    """A picture made ready for the network.

    Args:
        readings: What it may show, the likeliest first; see `find_digits`.
        error: Why it could not be read; None where it could.
        stages: What can be shown where there is no reading, if that was asked for.
    """

    readings: list[Reading] = field(default_factory=list)
    error: str | None = None
    stages: Stages = field(default_factory=dict)


def prepare(source: Picture, options: Options) -> Prepared:
    """Read one picture and find what is in it; that it cannot be read is told, not raised."""
    name = source if isinstance(source, (str, Path)) else "the picture"
    try:
        image = open_picture(source)
        if not options.crop:
            glyph = whole_picture(image)
            whole = Reading([Digit(glyph)])
            if options.keep_stages:
                whole.stages = {"picture": np.asarray(image.convert("L")), "input": glyph}
            return Prepared([whole])
        readings = find_digits(image, multi=options.multi, keep_stages=options.keep_stages)
        if options.keep_stages and not readings:
            return Prepared(stages={"light": light_of(image)})
    except ImageError as error:
        return Prepared(error=str(error))
    except MemoryError:
        return Prepared(error=f"{name} does not fit into memory")
    except Exception as error:  # a bug, which must not cost the answers about all the others
        kind = type(error).__name__
        return Prepared(
            error=f"{name} defeats this program, please report it: {kind}: {one_line(error)}"
        )
    if not options.keep_stages:
        for reading in readings:
            reading.stages = {}  # they would cost more than the rest to send
    return Prepared(readings)


def _prepare_chunk(sources: list[Picture], options: Options) -> list[Prepared]:
    return [prepare(source, options) for source in sources]


def _leave_signals() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer


class Workers:
    """A pool of processes that prepare pictures, or none at all.

    Args:
        num_processes: How many; 0 or 1 does the work here.
    """

    def __init__(self, num_processes: int = 0) -> None:
        self._pool: ProcessPoolExecutor | None = None
        self._ahead = 0
        if num_processes > 1:
            # not fork: torch's threads may hold locks that a forked child would wait for
            self._pool = ProcessPoolExecutor(
                num_processes, mp_context=get_context("spawn"), initializer=_leave_signals
            )
            self._ahead = 4 * num_processes
            for _ in range(num_processes):  # start them now, while the parent loads the network
                self._pool.submit(_prepare_chunk, [], Options())

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=kind is None, cancel_futures=True)

    def prepare_all(self, sources: Iterable[Picture], options: Options) -> Iterator[Prepared]:
        """Yield what was made of each source, in order, reading only a little ahead."""
        if self._pool is None:
            for source in sources:
                yield prepare(source, options)
            return
        remaining = iter(sources)
        waiting: deque[Future[list[Prepared]]] = deque()
        while True:
            while len(waiting) < self._ahead and (chunk := list(islice(remaining, CHUNK))):
                waiting.append(self._pool.submit(_prepare_chunk, chunk, options))
            if not waiting:
                return
            yield from waiting.popleft().result()
