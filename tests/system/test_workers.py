"""Threads that do one task together."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import FrameType

import pytest
import torch

from mnist_ce.system.device import use_threads
from mnist_ce.system.workers import Workers


@pytest.mark.parametrize("num_workers", [1, 2, 5])
def test_no_worker_passes_a_barrier_before_the_others_reach_it(num_workers: int) -> None:
    workers = Workers(num_workers)
    reached: list[int] = []
    seen: list[int] = []

    def task(worker: int) -> None:
        for _ in range(50):
            reached.append(worker)
            workers.barrier(worker)
            seen.append(len(reached))
            workers.barrier(worker)

    for _ in range(3):
        workers.run(task)
        assert sorted(reached) == sorted(list(range(num_workers)) * 50)
        assert seen == [number * num_workers for number in range(1, 51) for _ in range(num_workers)]
        reached.clear()
        seen.clear()


def test_tasks_run_single_threaded_in_inference_mode_and_leave_torch_as_it_was() -> None:
    workers = Workers(2)
    found: dict[int, tuple[int, bool]] = {}

    def task(worker: int) -> None:
        found[worker] = (torch.get_num_threads(), torch.is_inference_mode_enabled())

    with use_threads(3):
        workers.run(task)
        assert torch.get_num_threads() == 3
    assert found == {0: (1, True), 1: (1, True)}
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_an_exception_ends_all_and_is_raised_and_the_next_task_runs(failing: int) -> None:
    workers = Workers(3)
    done: list[int] = []

    def task(worker: int) -> None:
        workers.barrier(worker)
        if worker == failing:
            raise ValueError(worker)
        workers.barrier(worker)
        done.append(worker)

    for _ in range(2):
        with pytest.raises(ValueError, match=str(failing)):
            workers.run(task)
        assert done == []
    workers.run(done.append)
    assert sorted(done) == [0, 1, 2]


def test_map_takes_each_item_once() -> None:
    taken: list[int] = []
    Workers(3).map(taken.append, 10)
    assert sorted(taken) == list(range(10))


def test_threads_end_with_the_workers() -> None:
    before = set(threading.enumerate())
    workers = Workers(3)
    workers.run(lambda worker: None)
    started = set(threading.enumerate()) - before
    assert len(started) == 2
    del workers
    gc.collect()
    for thread in started:
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_starts_its_own_threads() -> None:
    workers = Workers(2)
    workers.run(lambda worker: None)
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # ends it where no thread answers
        called: list[int] = []
        workers.run(called.append)
        os._exit(0 if sorted(called) == [0, 1] else 1)
    assert os.waitpid(child, 0) == (child, 0)


def test_a_signal_that_raises_ends_the_task_after_every_worker_has_stopped() -> None:
    workers = Workers(2)
    stopped: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    def task(worker: int) -> None:
        if worker == 1:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
            stopped.append(worker)
        workers.barrier(worker)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            workers.run(task)
    finally:
        signal.signal(signal.SIGINT, before)
    assert stopped == [1]


def test_two_threads_may_run_tasks_at_once() -> None:
    def run_many(number: int) -> int:
        workers, calls = Workers(2), list[int]()
        for _ in range(100):
            workers.run(calls.append)
        return len(calls)

    with ThreadPoolExecutor(2) as executor:
        assert list(executor.map(run_many, range(2), timeout=60)) == [200, 200]
