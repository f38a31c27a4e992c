"""The training of a run's teacher, before the run's own first step."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from mnist_ce.checkpoint import load_tensors, save_tensors, weights_sha256
from mnist_ce.config import Config, Schedule
from mnist_ce.data.augment import Augment
from mnist_ce.data.batches import Batches, scale_pixels
from mnist_ce.data.splits import Split
from mnist_ce.device import derived_generator
from mnist_ce.errors import RunError, TrainingError
from mnist_ce.files import one_line
from mnist_ce.loop import train_one_epoch
from mnist_ce.objective import Multiclass
from mnist_ce.records import FORMAT_VERSION, Run
from mnist_ce.saving import Saver, checked_state
from mnist_ce.schedule import learning_rates
from mnist_ce.steps import NonFiniteLossError, OptimizerSettings
from mnist_ce.steps.base import assign, copied, named_weights
from mnist_ce.steps.plain import PlainStep
from mnist_ce.task import Task
from mnist_ce.teacher import Teacher

__all__ = ["Lesson", "teach"]

# Chosen on held-out training images; docs/recipes.md has the figures.
LEARNING_RATE = 0.2
SETTINGS = OptimizerSettings(momentum=0.9, nesterov=True, weight_decay=5e-4, average_decay=0.997)
SCHEDULE = Schedule(kind="one-cycle", warmup_fraction=0.2)
NUM_SETTLING_BATCHES = 100  # from which the means and variances of a trained teacher are taken
EVALUATION_BATCH = 1_000


@dataclass(frozen=True)
class Lesson:
    """A trained teacher.

    Args:
        teacher: The network, settled, on the CPU.
        summary: What `run.json` says of it.
    """

    teacher: Teacher
    summary: dict[str, Any]


class _StopError(Exception):
    """The training of the teacher was asked to stop, and is saved."""


def teach(
    config: Config,
    task: Task,
    device: torch.device,
    num_epochs: int,
    *,
    run: Run,
    saver: Saver,
    report: Callable[[str], None],
    wants_stop: Callable[[], bool],
) -> Lesson | None:
    """Train the run's teacher, or go on where an interrupted run left it.

    It is a function of the config and the data, as the run is. `teacher.pt` keeps its state.

    Args:
        config: The run's; batch size, distortions and seed are its own.
        task: Whose training images are shown.
        device: Where to compute.
        num_epochs: How often each is shown.
        run: Where `teacher.pt` lies.
        saver: Who writes it.
        report: Told of each epoch.
        wants_stop: Asked after each batch.

    Returns:
        The teacher; None if it was asked to stop: what was done is saved.

    Raises:
        RunError: If `teacher.pt` is of another run, or cannot be written.
        TrainingError: If the loss is not finite.
    """
    stream = derived_generator(config.train.seed, "teacher")
    teacher = Teacher(task.num_outputs, stream).to(device)
    batches = Batches(
        task.train.images.to(device),
        task.train.labels.to(device),
        batch_size=config.train.batch_size,
        seed=int(torch.randint(2**62, (), generator=stream)),
        augment=Augment(**config.augment.strengths()),
    )
    step = PlainStep(teacher, batches, Multiclass(), SETTINGS)
    rates = learning_rates(SCHEDULE, LEARNING_RATE, num_epochs, len(batches))
    seconds = _take_up(run, step)
    began = last_save = time.perf_counter()

    def save() -> None:
        done = {"format_version": FORMAT_VERSION, "step": step.state()}
        done["seconds"] = seconds + time.perf_counter() - began
        saver.write(save_tensors, run.teacher_path, done)

    def after_batch(number: int) -> None:
        nonlocal last_save
        if wants_stop():
            save()
            raise _StopError
        if time.perf_counter() - last_save > config.run.save_every_seconds:
            save()
            last_save = time.perf_counter()

    try:
        while step.num_steps < num_epochs * len(batches):
            epoch, done = divmod(step.num_steps, len(batches))
            step.start_epoch()
            totals = train_one_epoch(
                step, batches, epoch + 1, rates, first_batch=done, after_batch=after_batch
            )
            save()
            report(
                f"teacher: epoch {epoch + 1:>{len(str(num_epochs))}}/{num_epochs}  "
                f"loss {totals.loss:.4f}  {totals.accuracy:.2%}"
            )
    except _StopError:
        return None
    except NonFiniteLossError as error:
        raise TrainingError(
            f"the teacher's loss is {error.loss} in its batch {error.step + 1}; weaker distortions "
            "or larger batches may help"
        ) from None
    seconds += time.perf_counter() - began
    assign(named_weights(teacher), step.weights())
    settled = teacher.settled(
        batches.gather(indices, step.num_steps + number)[0]
        for number, indices in enumerate(
            islice(batches.epoch(num_epochs + 1), NUM_SETTLING_BATCHES)
        )
    )
    weights = copied(named_weights(settled))
    summary = {
        "epochs": num_epochs,
        "num_parameters": sum(tensor.numel() for tensor in weights.values()),
        "train_seconds": round(seconds, 3),
        "weights_sha256": weights_sha256(weights),
    }
    if task.validation is not None:
        summary["validation_accuracy"] = _accuracy(settled, task.validation, device)
    return Lesson(settled.cpu(), summary)


def _take_up(run: Run, step: PlainStep) -> float:
    """Continue from `teacher.pt`, where there is one; return the seconds that it took."""
    if not run.teacher_path.exists():
        return 0.0
    content = load_tensors(run.teacher_path)
    try:
        state, seconds = checked_state(content, named_weights(step.model)), content["seconds"]
        if not isinstance(seconds, float):
            raise TypeError("its seconds are not a number")
        if bool(state["momentum"]) != bool(state["num_steps"]) or not state["average"]:
            raise ValueError("its state is not whole")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(
            f"{run.teacher_path} does not belong to this run: {one_line(error)}"
        ) from None
    step.load_state(state)
    return seconds


@torch.inference_mode()
def _accuracy(teacher: Teacher, split: Split, device: torch.device) -> float:
    num_correct = 0
    for images, labels in zip(
        torch.split(split.images, EVALUATION_BATCH),
        torch.split(split.labels, EVALUATION_BATCH),
        strict=True,
    ):
        answers = teacher(scale_pixels(images.to(device))).argmax(dim=1).cpu()
        num_correct += int((answers == labels.cpu()).sum())
    return num_correct / len(split)
