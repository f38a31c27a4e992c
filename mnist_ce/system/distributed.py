"""The processes of one run, which `torchrun` starts and, when one of them fails, ends.

Each loads the same data, draws the same order and computes a part of each batch. Process 0, the
main one, alone writes the run and prints. A single process skips all communication.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Literal, TypeVar, cast

from mnist_ce.system.errors import DataError, TrainingError, UsageError
from mnist_ce.system.text import one_line

T = TypeVar("T")


def _variable(name: str, default: str) -> int:
    """Return a number that torchrun sets; 0 for other text, which `process_group` refuses."""
    text = os.environ.get(name, default)
    return int(text) if text.isdecimal() and len(text) < 10 else 0


def num_processes() -> int:
    return _variable("WORLD_SIZE", "1") if "MASTER_ADDR" in os.environ else 1


def rank() -> int:
    return _variable("RANK", "0") if num_processes() > 1 else 0


def is_main() -> bool:
    return rank() == 0


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Initialise and destroy the process group, with one GPU for each process."""
    if num_processes() == 1:
        yield
        return
    import torch

    if has_gpu := torch.cuda.is_available():
        torch.cuda.set_device(_variable("LOCAL_RANK", "0") % torch.cuda.device_count())
    try:
        if not 0 <= rank() < num_processes():  # for which torch would wait half an hour
            raise ValueError(f"RANK is {rank()} and WORLD_SIZE {num_processes()}")
        torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if has_gpu else "gloo")
    except (RuntimeError, ValueError) as error:
        raise UsageError(
            "the processes did not find each other; start them with torchrun, or unset RANK, "
            f"WORLD_SIZE and MASTER_ADDR: {one_line(error)}"
        ) from None
    try:
        yield
    except RuntimeError as error:  # as communication raises it when another process has ended
        raise TrainingError(
            f"a process of this run has failed or ended ({one_line(error)}); what was saved last "
            "is intact: continue with --resume, with any number of processes"
        ) from error
    finally:
        torch.distributed.destroy_process_group()


def from_main(make: Callable[[], T]) -> T:
    """Return in each process what `make` returns in the main one, by pickle."""
    values = [make() if is_main() else None]
    if num_processes() > 1:
        import torch

        torch.distributed.broadcast_object_list(values)
    return cast(T, values[0])


def main_first(load: Callable[[], T], digest: Callable[[T], str]) -> T:
    """Run `load` in each process, the main one first; a DataError if the digests differ."""
    loaded = [load()] if is_main() else []
    expected = from_main(lambda: digest(loaded[0]))  # the other processes wait for it
    if not is_main():
        loaded.append(load())
    if any(all_reduce([digest(loaded[0]) != expected], "MAX")):
        raise DataError("the processes of this run have loaded different data")
    return loaded[0]


def all_reduce(values: list[float], operation: Literal["SUM", "MAX"]) -> list[float]:
    """Return the sums or maxima of all processes' values, in float64."""
    if num_processes() == 1:
        return values
    import torch

    tensor = torch.tensor(values, dtype=torch.float64)
    torch.distributed.all_reduce(tensor, getattr(torch.distributed.ReduceOp, operation))
    return cast("list[float]", tensor.tolist())
