"""Which of several processes this is, and how they agree. A single process pays nothing.

The processes are started by `torchrun`, which puts rank, number and meeting place into the
environment. Process 0 is the main one: it alone reads the data and writes the run.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import TypeVar

from mnist_ce.system.errors import MnistCeError, TrainingError, UsageError

__all__ = [
    "MainProcessFailedError",
    "all_reduce_max",
    "broadcast_from_main",
    "is_main",
    "local_device",
    "num_processes",
    "process_group",
    "rank",
    "sum_over_processes",
]

T = TypeVar("T")


class MainProcessFailedError(MnistCeError):
    """The main process failed, and says why itself."""


def num_processes() -> int:
    """Return how many processes train together."""
    return _number("WORLD_SIZE", 1) if "MASTER_ADDR" in os.environ else 1


def rank() -> int:
    """Return this process's number among them, from 0."""
    return _number("RANK", 0) if num_processes() > 1 else 0


def is_main() -> bool:
    """Whether this is the process that reads data and writes files."""
    return rank() == 0


def local_device(device: str) -> str:
    """Return the device of this process: each process of a machine has a GPU of its own.

    Args:
        device: What the user named: `auto`, `cpu`, `cuda`, …
    """
    if num_processes() == 1 or device not in ("auto", "cuda"):
        return device
    import torch

    if device == "auto" and not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{_number('LOCAL_RANK', 0)}"


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Meet the other processes, and part from them at the end; nothing for a single process.

    Raises:
        TrainingError: If another process is lost on the way.
    """
    if num_processes() == 1:
        yield
        return
    import torch
    from torch import distributed

    gpus = torch.cuda.is_available()
    if gpus:
        torch.cuda.set_device(_number("LOCAL_RANK", 0) % torch.cuda.device_count())
    try:
        distributed.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
    except (RuntimeError, ValueError) as error:
        raise UsageError(
            "the processes did not find each other; start them with torchrun, or unset RANK, "
            f"WORLD_SIZE and MASTER_ADDR: {str(error).splitlines()[0]}"
        ) from None
    try:
        yield
    except RuntimeError as error:
        if not _is_lost_connection(error):
            raise
        raise TrainingError(
            "another process of this run has ended, and so it cannot go on; what was saved last "
            "is intact: continue with --resume, with any number of processes"
        ) from error
    finally:
        distributed.destroy_process_group()


def broadcast_from_main(make: Callable[[], T]) -> T:
    """Let the main process make something and give it to all.

    Raises:
        OtherProcessError: In the others, where the main process failed.
    """
    if num_processes() == 1:
        return make()
    from torch import distributed

    box: list[tuple[T | None, int] | None] = [None]
    if is_main():
        try:
            made = make()
        except Exception as error:
            code = error.exit_code if isinstance(error, MnistCeError) else 1
            distributed.broadcast_object_list([(None, code)])
            raise
        distributed.broadcast_object_list([(made, 0)])
        return made
    distributed.broadcast_object_list(box)
    assert box[0] is not None
    value, code = box[0]
    if code:
        failure = MainProcessFailedError("the main process failed")
        failure.exit_code = code
        raise failure
    return value  # type: ignore[return-value]  # what `make` returned there


def all_reduce_max(value: int) -> int:
    """Return the largest of all processes' values."""
    if num_processes() == 1:
        return value
    import torch
    from torch import distributed

    values = torch.tensor([value])
    distributed.all_reduce(values, op=distributed.ReduceOp.MAX)
    return int(values)


def sum_over_processes(values: list[float]) -> list[float]:
    """Return the sums of all processes' values, in float64."""
    if num_processes() == 1:
        return values
    import torch
    from torch import distributed

    sums = torch.tensor(values, dtype=torch.float64)
    distributed.all_reduce(sums)
    total: list[float] = sums.tolist()
    return total


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isascii() or not text.isdigit():
        raise UsageError(f"environment variable {name} = {text!r} is not a number")
    return int(text)


def _is_lost_connection(error: RuntimeError) -> bool:
    from torch import distributed

    text = str(error)
    return isinstance(error, distributed.DistError) or any(
        sign in text for sign in ("gloo", "Gloo", "NCCL", "Connection closed by peer")
    )
