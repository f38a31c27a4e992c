"""Threads that do one task together, each with single-threaded torch operations.

torch splits each operation among its own threads and joins them again, which costs more than it
gains for small matrices, and spins while it waits. Here a task joins only where it has to, and a
thread that waits sleeps. torch releases the interpreter's lock in every operation.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from functools import lru_cache, partial
from queue import SimpleQueue

import torch

from mnist_ce.system.device import use_threads

Task = Callable[[int], None]
Outcome = BaseException | None
Call = Callable[[int], Outcome]  # a task, whose exception is returned

# Held while a task runs: torch's number of threads is MKL's too, and that is the whole process's.
_running = threading.Lock()


if hasattr(os, "register_at_fork"):  # another thread of the parent may have held it
    os.register_at_fork(after_in_child=lambda: globals().update(_running=threading.Lock()))


class _AbortedError(Exception):
    """Another worker has failed."""


class Workers:
    """Run tasks on `num_workers` threads, of which the calling thread is number 0.

    They start with the first task, sleep between tasks, and end with this object or the process.
    After a fork the child starts its own. A process runs one task at a time.
    """

    def __init__(self, num_workers: int) -> None:
        self.num_workers = max(1, num_workers)
        self._process: int | None = None  # that the threads belong to

    def run(self, task: Task) -> None:
        """Call `task(worker)` on each worker, 0, 1, …, in inference mode; return when all are done.

        The first exception of a worker is raised, after every worker has stopped.
        """
        with _running, use_threads(1), torch.inference_mode():
            if self.num_workers == 1:
                task(0)
                return
            if self._process != os.getpid():
                self._start()
            call = partial(self._call, task)
            for inbox in self._inboxes:
                inbox.put(call)
            outcomes = [call(0)]
            num_running = len(self._inboxes)
            while num_running:
                try:
                    outcomes.append(self._done.get())
                    num_running -= 1
                except BaseException as interrupt:  # of a signal handler: still wait for the others
                    self._abort()
                    outcomes.append(interrupt)
            if errors := [outcome for outcome in outcomes if outcome is not None]:
                self._new_signals()
                raise next((e for e in errors if not isinstance(e, _AbortedError)), errors[0])

    def map(self, task: Task, num_items: int) -> None:
        """Call `task(item)` for items 0, 1, …, divided among the workers."""

        def take_turns(worker: int) -> None:
            for item in range(worker, num_items, self.num_workers):
                task(item)

        self.run(take_turns)

    def barrier(self, worker: int) -> None:
        """Wait until every worker of the running task has called this."""
        if self.num_workers == 1:
            return
        # Queues in place of `threading.Barrier`, which is Python code over a condition: for two
        # workers a barrier takes 43 µs, with `Barrier` 65; a step of 1 ms has one. A queue for each
        # two workers, as a worker can be one barrier ahead of another.
        for queue in self._signals[worker]:
            queue.put(False)
        for queues in self._signals:
            if queues[worker].get():  # True: put by `_abort`
                raise _AbortedError

    def _call(self, task: Task, worker: int) -> Outcome:
        try:
            task(worker)
        except BaseException as error:  # raised by `run`
            self._abort()
            return error
        return None

    def _abort(self) -> None:
        for queues in self._signals:
            for queue in queues:
                queue.put(True)

    def _new_signals(self) -> None:
        workers = range(self.num_workers)
        self._signals = [[SimpleQueue[bool]() for _ in workers] for _ in workers]

    def _start(self) -> None:
        self._new_signals()
        self._inboxes = [SimpleQueue[Call | None]() for _ in range(1, self.num_workers)]
        self._done = SimpleQueue[Outcome]()
        for worker, inbox in enumerate(self._inboxes, start=1):
            threading.Thread(target=_work, args=(worker, inbox, self._done), daemon=True).start()
            weakref.finalize(self, inbox.put, None)
        self._process = os.getpid()


def _work(worker: int, inbox: SimpleQueue[Call | None], done: SimpleQueue[Outcome]) -> None:
    torch.set_num_threads(1)  # the number belongs to the calling thread
    with torch.inference_mode():
        while (call := inbox.get()) is not None:
            outcome = call(worker)
            del call  # it refers to the `Workers`, as a traceback does, and would keep them alive
            done.put(outcome)
            del outcome


shared_workers = lru_cache(maxsize=4)(Workers)  # for calls that need none of their own
