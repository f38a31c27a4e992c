"""Learning rates as a function of the step, computed by `torch.optim.lr_scheduler`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch.optim import lr_scheduler

from mnist_ce.config import ScheduleConfig


def learning_rates(
    schedule: ScheduleConfig, learning_rate: float, num_epochs: int, steps_per_epoch: int
) -> Callable[[int], float]:
    """Return the learning rate of each step, counted from 0.

    The scheduler runs once, beforehand, on an optimizer without weights, so that a rate depends on
    nothing but its step: a resumed run needs no scheduler state. `learning_rate` is the highest.
    """
    if schedule.kind == "constant":
        return lambda step: learning_rate
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=learning_rate)
    scheduler: lr_scheduler.LRScheduler
    if schedule.kind == "step":
        scheduler = lr_scheduler.StepLR(optimizer, schedule.step_epochs, schedule.factor)
        by_epoch = _run(optimizer, scheduler, num_epochs)
        return lambda step: by_epoch[step // steps_per_epoch]
    num_steps = num_epochs * steps_per_epoch
    if schedule.kind == "cosine":
        scheduler = lr_scheduler.CosineAnnealingLR(
            optimizer, num_steps, eta_min=learning_rate * schedule.final_fraction
        )
    else:
        scheduler = lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=learning_rate,
            # OneCycleLR counts num_steps - 1 intervals and needs at least two of them
            total_steps=max(num_steps, 2 + math.ceil(1 / schedule.warmup_fraction)),
            pct_start=schedule.warmup_fraction,
            anneal_strategy="cos" if schedule.anneal == "cosine" else "linear",
            cycle_momentum=False,
            div_factor=schedule.initial_divisor,
            final_div_factor=schedule.final_divisor,
        )
    by_step = _run(optimizer, scheduler, num_steps)
    return lambda step: by_step[step]


def _run(
    optimizer: torch.optim.Optimizer, scheduler: lr_scheduler.LRScheduler, num_steps: int
) -> list[float]:
    rates = []
    with warnings.catch_warnings():
        # Nothing is optimised here, so the order of the two calls does not matter.
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
        for _ in range(num_steps):
            rates.append(float(optimizer.param_groups[0]["lr"]))
            scheduler.step()
    return rates
