"""Collective operations of the processes of one run; a single process skips them all.

`torchrun` starts the processes. Process 0 is the main one: it alone writes the run.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

from mnist_ce.system import errors

T = TypeVar("T")


def num_processes() -> int:
    """Return how many processes train together."""
    return _environment_int("WORLD_SIZE", 1) if "MASTER_ADDR" in os.environ else 1


def rank() -> int:
    """Return this process's number among them, from 0."""
    return _environment_int("RANK", 0) if num_processes() > 1 else 0


def is_main() -> bool:
    """Return whether this is the process that writes files and prints."""
    return rank() == 0


def local_device(device: str) -> str:
    """Return the device name for this process: of several, each has a GPU of its own."""
    if num_processes() == 1 or device not in ("auto", "cuda"):
        return device
    import torch

    if device == "auto" and not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{_environment_int('LOCAL_RANK', 0)}"


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Initialise and destroy the process group; nothing for a single process."""
    if num_processes() == 1:
        yield
        return
    import torch
    from torch import distributed

    if gpus := torch.cuda.is_available():
        torch.cuda.set_device(_environment_int("LOCAL_RANK", 0) % torch.cuda.device_count())
    try:
        distributed.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
    except (RuntimeError, ValueError) as error:
        raise errors.UsageError(
            "the processes did not find each other; start them with torchrun, or unset RANK, "
            f"WORLD_SIZE and MASTER_ADDR: {str(error).splitlines()[0]}"
        ) from None
    try:
        yield
    except RuntimeError as error:
        # NCCL and the store raise a DistError. Gloo (torch 2.14) raises a bare RuntimeError, which
        # only the path of gloo's source file in its text tells from others.
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error):
            raise
        raise errors.TrainingError(
            "another process of this run has ended, and so it cannot go on; what was saved last "
            "is intact: continue with --resume, with any number of processes"
        ) from error
    finally:
        distributed.destroy_process_group()


def broadcast_from_main(make: Callable[[], T]) -> T:
    """Run `make` in the main process alone and broadcast what it returns, by pickle.

    If it fails there, the other processes raise a MainProcessFailedError.
    """
    if num_processes() == 1:
        return make()
    from torch import distributed

    sent: list[Any] = [None, 0]  # the value, the exit code
    failure = None
    if is_main():
        try:
            sent[0] = make()
        except Exception as error:
            failure = error
            sent[1] = error.exit_code if isinstance(error, errors.MnistCeError) else 1
    distributed.broadcast_object_list(sent)
    if sent[1]:
        raise failure or errors.MainProcessFailedError(sent[1])
    return cast(T, sent[0])


def main_first(load: Callable[[], T], digest: Callable[[T], object] = lambda value: None) -> T:
    """Run `load` in the main process, then in each other one, so that files are fetched once.

    Unlike `broadcast_from_main` nothing large is pickled. A process whose `digest` differs from the
    main one's raises a DataError.
    """
    loaded: list[T] = []

    def load_here() -> object:
        loaded.append(load())
        return digest(loaded[0])

    expected = broadcast_from_main(load_here)
    if not loaded and load_here() != expected:
        raise errors.DataError(f"process {rank()} has loaded other data than the main process")
    return loaded[0]


def all_reduce_max(value: int) -> int:
    """Return the largest of all processes' values."""
    return int(_all_reduce([value], "MAX")[0])


def all_reduce_sum(values: list[float]) -> list[float]:
    """Return the sums of all processes' values, in float64."""
    return _all_reduce(values, "SUM")


def _all_reduce(values: Sequence[float], operation: str) -> list[float]:
    if num_processes() == 1:
        return list(values)
    import torch
    from torch import distributed

    tensor = torch.tensor(values, dtype=torch.float64)
    distributed.all_reduce(tensor, getattr(distributed.ReduceOp, operation))
    return list(tensor.tolist())


def _environment_int(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isascii() or not text.isdigit():
        raise errors.UsageError(f"environment variable {name} = {text!r} is not a number")
    return int(text)
