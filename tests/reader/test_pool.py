from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from multiprocessing import active_children, get_context

import numpy as np
import pytest

from mnist_ce.reader import pool as pool_module
from mnist_ce.reader.pool import PreprocessOptions, PreprocessPool
from mnist_ce.system.errors import ImageError

HARMFUL: dict[str, tuple[Callable[..., object], list[object]]] = {
    "never ends": (time.sleep, [1000]),
    "ends the process": (os._exit, [1]),
    "crashes": (os.abort, []),
    "fills the memory": (bytes, [1 << 31]),
}


@pytest.fixture(scope="module")
def pool() -> Iterator[PreprocessPool]:
    with closing(PreprocessPool(1, is_limited=True)) as pool:
        yield pool


@pytest.mark.skipif(os.name != "posix", reason="needs limits of memory")
@pytest.mark.parametrize("case", HARMFUL)
def test_a_harmful_call_fails_and_the_next_one_succeeds(
    pool: PreprocessPool, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    function, arguments = HARMFUL[case]
    if case == "never ends":
        monkeypatch.setattr(pool_module, "MAX_SECONDS", 0.5)
        pool.submit(os._exit, 1).exception(timeout=60)  # the next process has the new limit
    with pytest.raises(ImageError, match="too much memory or time"):
        pool.submit(function, *arguments).result(timeout=60)
    monkeypatch.undo()
    pool.submit(os._exit, 1).exception(timeout=60)
    assert pool.submit(math.sqrt, 9.0).result(timeout=60) == 3


def test_an_error_is_that_of_the_call(pool: PreprocessPool) -> None:
    with pytest.raises(ValueError, match="math domain error"):
        pool.submit(math.sqrt, -1.0).result(timeout=60)
    with pytest.raises(Exception, match="pickle"):
        pool.submit(lambda: None).result(timeout=60)
    result = pool.preprocess(b"text", PreprocessOptions()).result(timeout=60)
    assert "not an image" in str(result.error)


@pytest.mark.parametrize("num_processes", [0, 2])
def test_a_limited_pool_works_in_processes_of_its_own_and_ends_no_others(
    num_processes: int,
) -> None:
    other = get_context("spawn").Process(target=time.sleep, args=[1000])
    other.start()
    try:
        with closing(PreprocessPool(num_processes, is_limited=True)) as pool:
            ids = {pool.submit(os.getpid).result(timeout=60) for _ in range(6)}
            assert os.getpid() not in ids
            assert len(ids) == max(num_processes, 1)
            busy = pool.submit(time.sleep, 1000)
            while not busy.running():
                time.sleep(0.01)
        assert isinstance(busy.exception(timeout=60), ImageError)
        deadline = time.monotonic() + 60
        while ids & {child.pid for child in active_children()}:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert other.is_alive()
    finally:
        other.kill()


def test_an_image_that_ends_its_process_costs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    page = np.full((50, 50), 255, np.uint8)
    page[10:40, 20:25] = 0
    with closing(PreprocessPool(2)) as pool:
        first = pool.preprocess(page, PreprocessOptions())
        broken = pool.submit(os._exit, 1)
        results = [*pool.preprocess_all([page] * 5, PreprocessOptions()), first.result()]
    assert isinstance(broken.exception(timeout=60), ImageError)
    assert [result.error for result in results] == [None] * 6
    assert all(result.hypotheses for result in results)
