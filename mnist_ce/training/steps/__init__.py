"""Optimisation steps: the plain one, and the fast ones that must equal it."""

from __future__ import annotations

from mnist_ce.data.loader import DeviceLoader
from mnist_ce.network.model import MLP
from mnist_ce.network.objective import Objective
from mnist_ce.runs.train_state import MetricSums
from mnist_ce.system.distributed import num_processes
from mnist_ce.system.errors import UsageError
from mnist_ce.training.steps.base import NonFiniteLossError, OptimizerSettings, Step
from mnist_ce.training.steps.cuda_graph import CudaGraphStep
from mnist_ce.training.steps.fast import FastStep
from mnist_ce.training.steps.plain import PlainStep

__all__ = [
    "MetricSums",
    "NonFiniteLossError",
    "OptimizerSettings",
    "Step",
    "choose_step",
    "make_step",
]


def choose_step(kind: str, device_type: str) -> str:
    """Return the step to use: `auto` takes the fast one of the device, where there is one.

    Several processes share the plain step.

    Raises:
        UsageError: If the step asked for does not run on the device or in several processes.
    """
    if num_processes() > 1:
        if kind not in ("auto", "plain"):
            raise UsageError(
                f"train.step = '{kind}' does not run in several processes; use 'auto' or 'plain'"
            )
        return "distributed"
    fast = {"cpu": "fast", "cuda": "cuda-graph"}.get(device_type, "plain")
    if kind == "auto":
        return fast
    if kind not in ("plain", fast):
        raise UsageError(
            f"train.step = '{kind}' does not run on {device_type}; use 'auto' or 'plain'"
        )
    return kind


def make_step(
    kind: str,
    model: MLP,
    batches: DeviceLoader,
    objective: Objective,
    settings: OptimizerSettings,
) -> Step:
    """Build the step of a kind that `choose_step` returned."""
    if kind == "distributed":
        from mnist_ce.training.steps.distributed import DistributedStep

        return DistributedStep(model, batches, objective, settings)
    kinds: dict[str, type[PlainStep | FastStep | CudaGraphStep]] = {
        "plain": PlainStep,
        "fast": FastStep,
        "cuda-graph": CudaGraphStep,
    }
    return kinds[kind](model, batches, objective, settings)
