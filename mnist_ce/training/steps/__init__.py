"""Optimisation steps: the plain one, and the fast one that must equal it."""

from __future__ import annotations

from torch import nn

from mnist_ce.config import OptimizerConfig
from mnist_ce.data.loader import DeviceLoader
from mnist_ce.network.objective import Objective
from mnist_ce.system.distributed import num_processes
from mnist_ce.system.errors import UsageError
from mnist_ce.training.steps.base import NonFiniteLossError, OptimizerFactory, Step
from mnist_ce.training.steps.distributed import DistributedStep
from mnist_ce.training.steps.fast import FastStep
from mnist_ce.training.steps.plain import PlainStep

__all__ = ["NonFiniteLossError", "OptimizerFactory", "Step", "choose_step", "make_step"]


def choose_step(kind: str, device_type: str, *, needs_autograd: bool = False) -> str:
    """Return the kind of step to use; `auto` is the fastest for the device.

    Several processes always use the distributed step. What `needs_autograd`, anything but the MLP
    and SGD, has no faster step than the plain one.

    Raises:
        UsageError: If a named step does not run on the device or in several processes.
    """
    if num_processes() > 1:
        if kind not in ("auto", "plain"):
            raise UsageError(
                f"train.step = '{kind}' does not run in several processes; use 'auto' or 'plain'"
            )
        return "distributed"
    fastest = "fast" if device_type == "cpu" else "plain"
    if needs_autograd:
        fastest = "plain"
        if kind not in ("auto", "plain"):
            raise UsageError(f"train.step = '{kind}' is for the MLP and SGD; use 'auto' or 'plain'")
    if kind not in ("auto", "plain", fastest):
        raise UsageError(
            f"train.step = '{kind}' does not run on {device_type}; use 'auto' or 'plain'"
        )
    return fastest if kind == "auto" else kind


def make_step(
    kind: str,
    model: nn.Module,
    loader: DeviceLoader,
    objective: Objective,
    optimizer: OptimizerConfig,
    average_decay: float = 0.0,
    make_optimizer: OptimizerFactory | None = None,
) -> Step:
    """Build the step of a kind that `choose_step` returned; for the arguments see `Step`."""
    kinds: dict[str, type[Step]] = {
        "plain": PlainStep,
        "fast": FastStep,
        "distributed": DistributedStep,
    }
    return kinds[kind](model, loader, objective, optimizer, average_decay, make_optimizer)
