"""The plain step on shares of each batch, one share per process."""

from __future__ import annotations

from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from mnist_ce.system.distributed import all_reduce_sum, num_processes, rank
from mnist_ce.training.steps.plain import PlainStep


class DistributedStep(PlainStep):
    """The plain step of several processes.

    Every process has the whole training set, takes its share of the batch that a single process
    would take, and has the same weights and metrics after the step.
    """

    def _setup(self) -> None:
        super()._setup()
        device = self.loader.device
        self.parallel = DistributedDataParallel(
            self.network, device_ids=[device.index] if device.type == "cuda" else None
        )

    def __call__(self, indices: Tensor, learning_rate: float) -> None:
        """Train on this process's share of one batch."""
        # Distortions are drawn for the whole batch, as a single process draws them.
        images, labels = self.loader.get_batch(indices, self.num_steps)  # [batch, 784], [batch]
        images = images.tensor_split(num_processes())[rank()]  # → [share, 784], may be empty
        labels = labels.tensor_split(num_processes())[rank()]  # → [share]
        logits = self.parallel(images)  # → [share, outputs]
        # The mean over no images is undefined; this is 0 and has gradients of 0.
        loss = self.objective.loss(logits, labels) if len(labels) else logits.sum()
        # `DistributedDataParallel` takes the mean of the processes' gradients. The mean over the
        # batch is Σ (share/batch) · (mean over the share), so each process multiplies its mean by
        # share/batch and by the number of processes.
        self.optimizer.zero_grad()
        (loss * (len(labels) / len(indices) * num_processes())).backward()
        right = (self.objective.predictions(logits) == labels).sum()
        # After the backward pass, during which the gradients are already being reduced; before
        # the update, which no process may make if the loss is not finite in any.
        loss_sum, num_correct = all_reduce_sum([loss.item() * len(labels), float(right)])
        self._update(loss_sum / len(indices), learning_rate)
        self._count(loss_sum, int(num_correct), len(indices))
