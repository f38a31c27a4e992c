"""Optimisation steps: the plain one, and the fast one that must equal it."""

from __future__ import annotations

from mnist_ce.system.distributed import num_processes
from mnist_ce.system.errors import UsageError
from mnist_ce.training.steps.base import NonFiniteLossError, Step
from mnist_ce.training.steps.fast import FastStep
from mnist_ce.training.steps.plain import OptimizerFactory, PlainStep

__all__ = ["FastStep", "NonFiniteLossError", "OptimizerFactory", "PlainStep", "Step", "choose_step"]


def choose_step(kind: str, device_type: str, *, needs_autograd: bool = False) -> str:
    """Return the kind of step to use, `plain` or `fast`; `auto` is the faster of those possible.

    The fast step is for one process on a CPU. `needs_autograd` is all but the MLP and SGD.

    Raises:
        UsageError: If the fast step is named where it is not possible.
    """
    obstacles = {
        "is for the MLP and SGD": needs_autograd,
        "does not run in several processes": num_processes() > 1,
        f"does not run on {device_type}": device_type != "cpu",
    }
    obstacle = next((reason for reason, applies in obstacles.items() if applies), None)
    if kind == "fast" and obstacle:
        raise UsageError(f"train.step = 'fast' {obstacle}; use 'auto' or 'plain'")
    return "plain" if obstacle or kind == "plain" else "fast"
