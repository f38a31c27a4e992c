from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Callable, Iterator
from multiprocessing import active_children, get_context
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
from running import SEVEN

from mnist_ce import load_model
from mnist_ce.demo import isolation
from mnist_ce.demo.inference import InferenceService
from mnist_ce.demo.isolation import IsolatedPool
from mnist_ce.prediction.predict import PredictOptions
from mnist_ce.system.errors import ImageError


@pytest.fixture(scope="module")
def pool() -> Iterator[IsolatedPool]:
    pool = IsolatedPool(1)
    yield pool
    pool.close()


HARMFUL: dict[str, tuple[Callable[..., object], object]] = {
    "never ends": (time.sleep, 1000),
    "crashes": (os._exit, 1),
    "is killed": (os.abort, ()),
    "fills the memory": (bytes, 1 << 31),
}


@pytest.mark.skipif(os.name != "posix", reason="needs limits of memory")
@pytest.mark.parametrize("case", HARMFUL)
def test_a_harmful_call_fails_and_the_next_one_is_answered(
    pool: IsolatedPool, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    function, argument = HARMFUL[case]
    arguments = () if argument == () else (argument,)
    with monkeypatch.context() as patch:
        patch.setattr(isolation, "MAX_SECONDS", 0.5 if case == "never ends" else 60)
        with pytest.raises(ImageError, match="too much memory or time"):
            pool.submit(function, *arguments).result(timeout=60)
    assert pool.submit(math.sqrt, 9.0).result(timeout=60) == 3


def test_an_error_is_that_of_the_call(pool: IsolatedPool) -> None:
    with pytest.raises(ValueError, match="math domain error"):
        pool.submit(math.sqrt, -1.0).result(timeout=60)
    with pytest.raises(ImageError, match="not an image"):
        pool.submit(isolation.to_png, b"text").result(timeout=60)


@pytest.mark.parametrize("num_processes", [1, 2])
def test_images_are_decoded_elsewhere_and_a_hanging_one_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_processes: int
) -> None:
    other = get_context("spawn").Process(target=time.sleep, args=[1000])  # not of the pool
    other.start()
    service, trained = InferenceService(tmp_path, num_processes), load_model("world")
    ids = {service.pool.submit(os.getpid).result(60) for _ in range(4)}
    assert os.getpid() not in ids

    async def ask() -> list[list[int | None]]:
        monkeypatch.setattr(isolation, "MAX_SECONDS", 5)
        hanging = [service.pool.submit(time.sleep, 1000) for _ in range(num_processes)]
        wanted = (service.predict(SEVEN, trained, PredictOptions()) for _ in range(4))
        results = await asyncio.gather(*wanted)
        assert all(isinstance(future.exception(), ImageError) for future in hanging)
        return [[record.label for record in records] for records in results]

    try:
        assert asyncio.run(ask()) == [[7]] * 4
        assert other.is_alive()
    finally:
        service.close()
        other.kill()
    deadline = time.monotonic() + 20
    while ids & {child.pid for child in active_children()}:
        assert time.monotonic() < deadline
        time.sleep(0.05)
