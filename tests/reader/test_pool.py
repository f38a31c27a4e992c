"""Processes of the reader: what harms one costs no other image, and none outlives its parent."""

from __future__ import annotations

import io
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mnist_ce.reader import pool as pool_module
from mnist_ce.reader.pool import PreprocessOptions, PreprocessPool, preprocess
from mnist_ce.system.errors import ImageError

Call = tuple[Callable[..., object], list[object]]
ENDLESS: Call = (re.match, ["(a+)+b", "a" * 99])  # in C, without a look at signals
HARMFUL: dict[str, Call] = {
    "never ends": ENDLESS,
    "crashes": (os.abort, []),
    "fills the memory": (bytes, [1 << 31]),
}
pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs limits of memory and CPU time")


def png(page: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(page).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def pool() -> Iterator[PreprocessPool]:
    with pytest.MonkeyPatch.context() as patch, closing(PreprocessPool(1)) as pool:
        patch.setattr(pool_module, "MAX_SECONDS", 1)
        yield pool


@pytest.mark.parametrize("case", HARMFUL)
def test_a_harmful_call_fails_and_the_next_one_succeeds(pool: PreprocessPool, case: str) -> None:
    function, arguments = HARMFUL[case]
    with pytest.raises(ImageError, match="too much memory or time"):
        pool.submit(function, *arguments).result(timeout=60)
    assert pool.submit(math.sqrt, 9.0).result(timeout=60) == 3


def test_an_error_is_that_of_the_call(pool: PreprocessPool) -> None:
    with pytest.raises(ValueError, match="math domain error"):
        pool.submit(math.sqrt, -1.0).result(timeout=60)
    with pytest.raises(Exception, match="pickle"):
        pool.submit(lambda: None).result(timeout=60)
    (result,) = pool.preprocess(b"text", PreprocessOptions()).result(timeout=60)
    assert "not an image" in str(result.error)


def ends(process_id: int) -> bool:
    deadline = time.monotonic() + 10
    with suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.kill(process_id, 0)
            time.sleep(0.01)
        return False
    return True


def endless(pool: PreprocessPool, path: Path) -> Future[None]:
    """Call what never ends, which has begun when this returns."""
    code = f"open({str(path)!r}, 'w'); import re; re.match({ENDLESS[1][0]!r}, {ENDLESS[1][1]!r})"
    future = pool.submit(exec, code)
    while not path.exists():
        time.sleep(0.01)
    return future


def test_closing_ends_the_processes_whatever_they_do(tmp_path: Path) -> None:
    with closing(PreprocessPool(2)) as pool:
        ids = {pool.submit(os.getpid).result(timeout=60) for _ in range(3)}
        assert len(ids) == 1  # a second one was never needed
        assert os.getpid() not in ids
        busy = endless(pool, tmp_path / "busy")
    assert isinstance(busy.exception(timeout=60), ImageError)
    assert all(map(ends, ids))
    assert pool.submit(math.sqrt, 9.0).result(timeout=60) == 3  # by a new one
    pool.close()


def test_a_cancelled_call_ends_its_process_alone(tmp_path: Path) -> None:
    with closing(PreprocessPool(2)) as pool:
        idle = pool.submit(os.getpid).result(timeout=60)
        queued = pool.submit(math.sqrt, 4.0)
        for number in range(3):
            busy = endless(pool, tmp_path / str(number))
            assert busy.cancel()
            assert pool.submit(math.sqrt, 9.0).result(timeout=60) == 3
        assert queued.result() == 2
        assert not queued.cancel()
        # One of the two processes was killed three times.
        assert pool.submit(os.getpid).result(timeout=60) != idle


def test_no_process_outlives_a_killed_parent() -> None:
    """The user's main module needs no guard against being imported once more."""
    code = (
        "import os, time; from mnist_ce.reader.pool import shared_pool\n"
        "print(shared_pool().submit(os.getpid).result(), flush=True)\n"
        "print(shared_pool().submit(time.sleep, 1000), flush=True); time.sleep(1000)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        process_id = int(parent.stdout.readline())
        parent.stdout.readline()
        os.kill(parent.pid, signal.SIGKILL)
    assert ends(process_id)


def test_results_come_in_order_whatever_ends_a_process() -> None:
    pages = [np.full((50, 50), 255, np.uint8) for _ in range(12)]
    for number, page in enumerate(pages):
        page[10:40, 5 + number : 10 + number] = 0
    contents = [png(page) for page in pages]
    contents[7] = b"no image"
    with closing(PreprocessPool(2)) as pool:
        broken = pool.submit(os._exit, 1)
        results = [page for (page,) in pool.preprocess_all(contents, PreprocessOptions())]
    assert isinstance(broken.exception(timeout=60), ImageError)
    assert [result.error is not None for result in results] == [i == 7 for i in range(12)]
    for page, result in zip(pages, results, strict=True):
        (alone,) = preprocess(page, PreprocessOptions())
        if result.error is None:
            boxes, expected = ([h.digits[0].box for h in r.hypotheses] for r in (result, alone))
            assert boxes == expected
