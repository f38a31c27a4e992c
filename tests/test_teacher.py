"""A run that trains a teacher first and learns from its probabilities."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mnist_ce.checkpoint import load_tensors, save_tensors, weights_sha256
from mnist_ce.config import resolve_config
from mnist_ce.errors import CheckpointError, MnistCeError, RunError, StoppedError, UsageError
from mnist_ce.progress import Reporter
from mnist_ce.teacher import Teacher
from mnist_ce.training import TrainResult, train

NUM_BATCHES = 10  # of 30 images, in an epoch
NUM_TEACHER_EPOCHS = 2


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def base(tiny_data_dir: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "data.dataset": "synthetic",
        "data.dir": str(tiny_data_dir),
        "data.validation_size": 20,
        "model.hidden": [24, 16],
        "train.epochs": 2,
        "train.batch_size": 28,  # 10 batches of the 280 images that are left
        "optimizer.learning_rate": 0.1,
        "augment.rotation_degrees": 10.0,
        "teacher.epochs": NUM_TEACHER_EPOCHS,
        "run.output": str(tmp_path),
        "run.plots": False,
    }


class Listener(Reporter):
    """Keeps what it hears, and asks to stop the so-many-th time that it is asked."""

    def __init__(self, stop_at: int = 10**9) -> None:
        self.left = stop_at
        self.heard: list[str] = []

    def progress(self, text: str) -> None:
        self.heard.append(text)

    def stop_signal(self) -> int | None:
        self.left -= 1
        return signal.SIGTERM if self.left <= 0 else None


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 784, generator=torch.Generator().manual_seed(seed))


def test_a_settled_teacher_answers_for_each_image_alone() -> None:
    teacher = Teacher(10, torch.Generator().manual_seed(0))
    one = images(1)
    assert not torch.allclose(
        teacher.probabilities(torch.cat([one, images(7, seed=1)]))[:1],
        teacher.probabilities(torch.cat([one, images(7, seed=2) * 0.1]))[:1],
        atol=1e-6,
    )
    settled = teacher.settled([images(32, seed) for seed in range(4)])
    alone = settled.probabilities(one)
    torch.testing.assert_close(
        settled.probabilities(torch.cat([one, images(7, seed=1)]))[:1], alone
    )
    torch.testing.assert_close(alone.sum(dim=1), torch.ones(1))


def test_a_settled_teacher_does_what_the_normalised_one_did() -> None:
    """Over the very batch whose means and variances it keeps; the last layer is made to matter."""
    teacher = Teacher(10, torch.Generator().manual_seed(0))
    with torch.no_grad():
        teacher.linear.weight.mul_(100)
        for norm in teacher.norms:
            assert isinstance(norm, torch.nn.BatchNorm2d)
            torch.nn.init.uniform_(norm.weight, 0.5, 2)
            torch.nn.init.uniform_(norm.bias, -1, 1)
    batch = images(64)
    with torch.no_grad():
        normalised = teacher(batch)
    settled = teacher.settled([batch])
    with torch.no_grad():
        error = (settled(batch) - normalised).abs().max()
    # the running variance is the unbiased one, of 64 · 16 values and more
    assert error <= 0.01 * normalised.abs().max()
    assert teacher.training  # and the one it was made from is as it was


def test_the_run_learns_what_its_teacher_says(base: dict[str, Any]) -> None:
    listener = Listener()
    taught = train(None, base | {"run.name": "taught"}, reporter=listener)
    plain = train(None, base | {"run.name": "plain", "teacher.epochs": 0})
    assert [line.split("loss")[0] for line in listener.heard] == [
        "teacher: epoch 1/2  ",
        "teacher: epoch 2/2  ",
    ]
    summary = taught.record["teacher"]
    assert summary["epochs"] == NUM_TEACHER_EPOCHS
    assert summary["num_parameters"] == sum(
        tensor.numel() for tensor in Teacher().settled([images(2)]).parameters()
    )
    assert summary["train_seconds"] > 0
    assert 0 <= summary["validation_accuracy"] <= 1
    assert "teacher" not in plain.record
    assert not plain.run.teacher_path.exists()
    assert taught.record["weights_sha256"] != plain.record["weights_sha256"]
    again = train(None, base | {"run.name": "again"})
    assert again.record["weights_sha256"] == taught.record["weights_sha256"]
    assert again.record["teacher"]["weights_sha256"] == summary["weights_sha256"]


def stopped(settings: dict[str, Any], stop_at: int, *, resume: str | None = None) -> str:
    with pytest.raises(StoppedError) as error:
        train(None, settings, resume=resume, reporter=Listener(stop_at))
    assert error.value.exit_code == 128 + signal.SIGTERM
    return str(error.value)


def continued(settings: dict[str, Any]) -> TrainResult:
    output = {key: settings[key] for key in ("run.output", "data.dir")}
    return train(None, output, resume="latest")


@pytest.mark.parametrize(
    "stop_at", [1, 7, NUM_BATCHES, NUM_BATCHES + 1, NUM_TEACHER_EPOCHS * NUM_BATCHES]
)
def test_a_run_stopped_while_its_teacher_learns_ends_in_the_same_bytes(
    base: dict[str, Any], stop_at: int
) -> None:
    whole = train(None, base | {"run.name": "whole"})
    message = stopped(base | {"run.name": "pieces"}, stop_at)
    assert "while the teacher was trained; continue with: mnist-ce train --resume" in message
    pieces = continued(base)
    assert pieces.record["weights_sha256"] == whole.record["weights_sha256"]
    assert pieces.record["teacher"]["weights_sha256"] == whole.record["teacher"]["weights_sha256"]


def test_a_run_stopped_later_takes_its_teacher_from_the_file(base: dict[str, Any]) -> None:
    whole = train(None, base | {"run.name": "whole"})
    # asked after each batch: those of the teacher, and 3 of the network
    stopped(base | {"run.name": "pieces"}, NUM_TEACHER_EPOCHS * NUM_BATCHES + 3)
    listener = Listener()
    output = {key: base[key] for key in ("run.output", "data.dir")}
    pieces = train(None, output, resume="latest", reporter=listener)
    assert not any("teacher" in line for line in listener.heard)
    assert pieces.record["weights_sha256"] == whole.record["weights_sha256"]


def test_the_state_is_saved_by_the_clock_too(base: dict[str, Any]) -> None:
    """A process that is killed, not stopped, loses no more than `save_every_seconds`."""

    class Killed(Listener):
        def stop_signal(self) -> int | None:
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt
            return None

    settings = base | {"run.name": "killed", "run.save_every_seconds": 1e-9}
    with pytest.raises(KeyboardInterrupt):
        train(None, settings, reporter=Killed(6))
    content = load_tensors(Path(base["run.output"]) / "killed" / "teacher.pt")
    assert content["step"]["num_steps"] == 5
    whole = train(None, base | {"run.name": "whole"})
    assert (
        train(None, {"run.output": base["run.output"]}, resume="killed").record["weights_sha256"]
        == whole.record["weights_sha256"]
    )


def test_a_dry_run_tries_the_teacher_too(base: dict[str, Any]) -> None:
    listener = Listener()
    result = train(None, base, dry_run=True, reporter=listener)
    assert result.record["teacher"]["epochs"] == 1
    assert len([line for line in listener.heard if line.startswith("teacher")]) == 1


def drop_average(content: dict[str, Any]) -> dict[str, Any]:
    return content | {"step": content["step"] | {"average": {}}}


def other_shape(content: dict[str, Any]) -> dict[str, Any]:
    weights = dict(content["step"]["weights"])
    weights["linear.weight"] = weights["linear.weight"][:, :5].contiguous()
    return content | {"step": content["step"] | {"weights": weights}}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda content: [1], "not a table"),
        (lambda content: content | {"format_version": 99}, "format_version"),
        (lambda content: content | {"seconds": "long"}, "seconds"),
        (drop_average, "not whole"),
        (other_shape, "another shape"),
    ],
)
def test_a_foreign_teacher_is_refused(
    base: dict[str, Any], change: Callable[[Any], Any], reason: str
) -> None:
    stopped(base | {"run.name": "pieces"}, 5)
    path = Path(base["run.output"]) / "pieces" / "teacher.pt"
    save_tensors(path, change(load_tensors(path)))
    with pytest.raises(RunError, match=reason) as error:
        continued(base)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_damaged_teacher_is_noticed(base: dict[str, Any]) -> None:
    stopped(base | {"run.name": "pieces"}, 5)
    path = Path(base["run.output"]) / "pieces" / "teacher.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        continued(base)


def test_a_teacher_is_for_several_classes() -> None:
    with pytest.raises(UsageError, match=r"teacher\.epochs"):
        resolve_config(flags={"objective.kind": "binary", "teacher.epochs": 1})


def test_a_teacher_cannot_come_later(base: dict[str, Any]) -> None:
    train(None, base | {"run.name": "plain", "teacher.epochs": 0})
    with pytest.raises(MnistCeError, match=r"teacher\.epochs cannot change"):
        train(
            None,
            {"run.output": base["run.output"], "teacher.epochs": 1},
            resume="plain",
        )


def test_the_digest_is_of_what_is_used(base: dict[str, Any]) -> None:
    result = train(None, base | {"run.name": "taught"})
    state = load_tensors(result.run.teacher_path)["step"]
    assert state["num_steps"] == NUM_TEACHER_EPOCHS * NUM_BATCHES
    # not the digest of the weights in training: the normalisation has become part of them
    assert weights_sha256(state["average"]) != result.record["teacher"]["weights_sha256"]
