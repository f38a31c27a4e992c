"""How good a run is after an epoch, and which epoch was the best."""

from __future__ import annotations

import torch
from torch import Tensor

from mnist_ce.data.dataset import DataSplits, Split
from mnist_ce.evaluation.inference import Evaluation, evaluate
from mnist_ce.network.model import MLP
from mnist_ce.runs.train_state import EpochMetrics

__all__ = ["is_better", "measure"]


def measure(
    task: DataSplits,
    hidden: tuple[int, ...],
    weights: dict[str, Tensor],
    device: torch.device,
    *,
    test: bool,
) -> EpochMetrics:
    """Return the results on the validation images, where there are any, and the test images.

    Args:
        task: Whose images.
        hidden: The widths of the network's hidden layers.
        weights: The network's, by name.
        device: Where to compute.
        test: Whether the test images are due.
    """
    model = MLP(hidden, task.num_outputs).to(device)
    model.load_state_dict(weights)

    def result_on(split: Split) -> Evaluation:
        return evaluate(model, split.images.to(device), split.labels, task.objective)

    row: EpochMetrics = {}
    if task.validation is not None:
        result = result_on(task.validation)
        row |= {"validation_loss": result.loss, "validation_accuracy": result.accuracy}
    if test:
        result = result_on(task.test)
        row |= {
            "test_loss": result.loss,
            "test_accuracy": result.accuracy,
            "test_correct": result.num_correct,
            "test_total": result.num_examples,
        }
    return row


def is_better(row: EpochMetrics, best: EpochMetrics | None) -> bool:
    """Whether an epoch's validation result beats the best so far: accuracy first, then loss."""
    if best is None:
        return True
    return (row["validation_accuracy"], -row["validation_loss"]) > (
        best["validation_accuracy"],
        -best["validation_loss"],
    )
