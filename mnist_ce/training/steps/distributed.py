"""One optimisation step by several processes: the plain step on shares of each batch."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from mnist_ce.data.loader import DeviceLoader
from mnist_ce.network.model import MLP
from mnist_ce.network.objective import Objective
from mnist_ce.system.distributed import all_reduce_sum, num_processes, rank
from mnist_ce.training.steps.base import NonFiniteLossError, OptimizerSettings
from mnist_ce.training.steps.plain import PlainStep

__all__ = ["DistributedStep"]


class DistributedStep(PlainStep):
    """The plain step, whose batch is shared out among the processes; arguments as there.

    Every process holds the whole training set, takes its share of the batch that a single process
    would take, and has the same weights and totals after the step.
    """

    def __init__(
        self, model: MLP, batches: DeviceLoader, objective: Objective, settings: OptimizerSettings
    ) -> None:
        super().__init__(model, batches, objective, settings)
        device = batches.device
        self.parallel = DistributedDataParallel(
            model, device_ids=[device.index] if device.type == "cuda" else None
        )

    def __call__(self, indices: Tensor, learning_rate: float) -> None:
        """See `Step.__call__`.

        `DistributedDataParallel` takes the mean of the processes' gradients. The mean over the
        batch is Σ (share/batch) · (mean over the share), so each process multiplies its mean by
        share/batch and by the number of processes.
        """
        # Distortions are drawn for the whole batch, as a single process draws them.
        images, labels = self.batches.gather(indices, self.num_steps)  # [batch, 784], [batch]
        images = images.tensor_split(num_processes())[rank()]  # → [share, 784], may be empty
        labels = labels.tensor_split(num_processes())[rank()]
        logits = self.parallel(images)  # → [share, classes]
        # The mean over no images is undefined; this is 0 and has gradients of 0.
        loss = self.objective.loss(logits, labels) if len(labels) else logits.sum()
        sums = all_reduce_sum(
            [
                loss.item() * len(labels),
                float((self.objective.predictions(logits) == labels).sum()),
            ]
        )
        batch_loss = sums[0] / len(indices)
        if not math.isfinite(batch_loss):
            raise NonFiniteLossError(self.num_steps, batch_loss)
        self.optimizer.zero_grad()
        (loss * (len(labels) / len(indices) * num_processes())).backward()
        self.optimizer.param_groups[0]["lr"] = learning_rate
        self.optimizer.step()
        self._update_average()

        self.sums.loss_sum += sums[0]
        self.sums.num_correct += int(sums[1])
        self.sums.num_examples += len(indices)
        self.num_steps += 1
