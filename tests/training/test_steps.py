"""The fast step equals the plain one."""

from __future__ import annotations

import itertools
import statistics
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from mnist_ce.config import AugmentConfig, Config, resolve_config
from mnist_ce.data.loader import DeviceLoader
from mnist_ce.network.model import MLP
from mnist_ce.network.objective import Binary, Multiclass, Objective
from mnist_ce.runs.train_state import MetricSums
from mnist_ce.system.device import use_threads
from mnist_ce.system.errors import UsageError
from mnist_ce.training.setup import Custom, choose_step
from mnist_ce.training.steps import NonFiniteLossError, Step
from mnist_ce.training.steps.fast import FastStep
from mnist_ce.training.steps.plain import PlainStep

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS: dict[str, type[PlainStep | FastStep]] = {"plain": PlainStep, "fast": FastStep}
KINDS = pytest.mark.parametrize("kind", ["plain", "fast"])


def config(momentum: float = 0.5, decay: float = 0.0, shares: int = 2, **optimizer: Any) -> Config:
    sections = {"optimizer": {"momentum": momentum, **optimizer}, "average": {"decay": decay}}
    return Config.model_validate(sections | {"train": {"shares": shares}})


CLASSIC, ALL = config(), config(0.9, 0.99, nesterov=True, weight_decay=1e-3)
CONFIGS = pytest.mark.parametrize("settings", [CLASSIC, ALL])


def make_loader(num_images: int = 650, batch_size: int = 64, **options: Any) -> DeviceLoader:
    generator = torch.Generator().manual_seed(1)
    # Ten blurry prototypes with noise: something that can be learned, so that gradients are real.
    prototypes = torch.rand(10, 28, 28, generator=generator)
    labels = torch.randint(0, 10, (num_images,), generator=generator)
    noise = torch.rand(num_images, 28, 28, generator=generator)
    images = ((0.7 * prototypes[labels] + 0.3 * noise) * 255).to(torch.uint8)
    return DeviceLoader(images, labels, batch_size=batch_size, seed=3, **options)


def make(
    kind: str, settings: Config, loader: DeviceLoader, hidden: tuple[int, ...] = (60, 40, 20)
) -> Step:
    torch.manual_seed(0)
    return STEPS[kind](MLP(hidden), loader, Multiclass(), settings)


def run(step: Step, num_steps: int) -> Step:
    """Train from the first batch on, at a rate that changes with every step."""
    batches = (indices for epoch in itertools.count(1) for indices in step.loader.epoch(epoch))
    for indices in itertools.islice(batches, step.num_steps, num_steps):
        if step.num_steps % len(step.loader) == 0:
            step.sums = MetricSums()
        step(indices, 0.05 / (1 + step.num_steps / 100))
    return step


class Exact(PlainStep):
    """The plain step in float64."""

    def __init__(self, settings: Config) -> None:
        loader = make_loader()
        super().__init__(MLP().double(), loader, Multiclass(), settings)
        gather = loader.gather

        def in_float64(*arguments: Any) -> tuple[Tensor, Tensor]:
            images, labels = gather(*arguments)
            return images.double(), labels

        loader.gather = in_float64  # type: ignore[method-assign,assignment]


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference, relative to the largest weight of the same tensor."""
    return max(
        (
            float((one[n].double() - w.double()).abs().max() / w.abs().max().clamp(min=1e-30))
            for n, w in other.items()
        ),
        default=0.0,
    )


@CONFIGS
def test_fast_step_equals_plain_step(settings: Config) -> None:
    """Each of 11 steps, begun from the same state.

    Runs that are left alone drift apart by more than rounding whenever a ReLU's input is so near
    zero that rounding decides its sign; the plain step and float64 drift apart in the same way.
    """
    loader, hidden = make_loader(), (520, 320, 240, 120)
    plain, fast = (make(kind, settings, loader, hidden) for kind in STEPS)
    exact = Exact(settings)
    differences, fast_errors, plain_errors = [], [], []
    for indices in loader.epoch(1):
        for step in (fast, exact):
            step.load_state(plain.state())
        rate = 0.05 / (1 + plain.num_steps / 100)
        for each in (plain, fast, exact):
            each(indices, rate)
        ours, theirs, right = (each.state()["weights"] for each in (fast, plain, exact))
        differences.append(difference(ours, theirs))
        fast_errors.append(difference(ours, right))
        plain_errors.append(difference(theirs, right))
    assert fast.sums.num_correct == plain.sums.num_correct
    assert fast.sums.loss == pytest.approx(plain.sums.loss, rel=1e-5)
    assert fast.sums.num_examples == plain.sums.num_examples == 650
    assert difference(fast.eval_weights(), plain.eval_weights()) <= 1e-5
    assert sum(value > 1e-5 for value in differences) <= 2, differences
    assert statistics.median(differences) <= 1e-6
    assert statistics.median(fast_errors) <= 2 * statistics.median(plain_errors)


@hypothesis.settings(max_examples=25, deadline=None, derandomize=True)
@given(
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
    nesterov=st.booleans(),
    weight_decay=st.sampled_from([0.0, 1e-3]),
    average_decay=st.sampled_from([0.0, 0.99]),
    batch_size=st.integers(1, 50),  # of 40 images
    num_shards=st.integers(1, 5),
    num_threads=st.integers(1, 3),
    num_outputs=st.sampled_from([1, 10]),
)
def test_fast_step_equals_plain_step_whatever_the_settings(
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    average_decay: float,
    batch_size: int,
    num_shards: int,
    num_threads: int,
    num_outputs: int,
) -> None:
    """Shards may have no image and no output; so few ReLUs hardly ever hang on rounding."""
    settings = config(
        momentum,
        average_decay,
        num_shards,
        nesterov=nesterov and momentum > 0,
        weight_decay=weight_decay,
    )
    loader = make_loader(num_images=40, batch_size=batch_size)
    objective: Objective = Multiclass(0.1)
    if num_outputs == 1:
        objective, loader.labels = Binary(2.0), (loader.labels > 4).long()
    with use_threads(num_threads):
        plain, fast = (
            kind(MLP((12, 3), num_outputs), loader, objective, settings) for kind in STEPS.values()
        )
        for indices in itertools.islice(loader.epoch(1), 5):
            fast.load_state(plain.state())
            for step in (plain, fast):
                step.sums = MetricSums()
                step(indices, 0.05)
            assert fast.sums.loss == pytest.approx(plain.sums.loss, rel=1e-5)
            assert fast.sums.num_correct == plain.sums.num_correct
            for part in ("weights", "momentum", "average"):
                assert difference(fast.state()[part], plain.state()[part]) <= 1e-5


def test_steps_see_the_same_batches_and_distortions() -> None:
    augment = AugmentConfig(rotation_degrees=10, shift_pixels=1, elastic_pixels=0.5)
    loader = make_loader(augment=augment, last_augmented_epoch=1)
    one, other = (run(make(kind, CLASSIC, loader), 15) for kind in STEPS)
    assert difference(other.eval_weights(), one.eval_weights()) <= 1e-5


@KINDS
def test_one_batch_can_be_overfitted(kind: str) -> None:
    step = run(make(kind, config(0.9), make_loader(num_images=64)), 100)
    assert step.sums.loss < 0.05
    assert step.sums.num_correct == 64


@KINDS
def test_non_finite_loss_stops_before_the_update(kind: str) -> None:
    step = run(make(kind, ALL, make_loader()), 5)
    step.parameters["l1.bias"][0] = float("nan")
    before = step.state()
    with pytest.raises(NonFiniteLossError) as caught:
        step(torch.arange(64), 0.1)
    assert caught.value.step == 5
    for part in ("weights", "momentum", "average"):
        torch.testing.assert_close(step.state()[part], before[part], rtol=0, atol=0, equal_nan=True)


@KINDS
@pytest.mark.parametrize("loaded_by", ["plain", "fast"])
def test_state_continues_with_any_kind(kind: str, loaded_by: str) -> None:
    loader = make_loader()
    whole, half = (run(make(kind, ALL, loader), num_steps) for num_steps in (8, 4))
    rest = make(loaded_by, ALL, loader)
    rest.load_state(half.state())
    error = difference(run(rest, 8).eval_weights(), whole.eval_weights())
    assert error == 0 if kind == loaded_by else error <= 1e-5


def test_fast_step_updates_the_model_in_place() -> None:
    step = make("fast", CLASSIC, make_loader())
    before = {name: parameter.detach().clone() for name, parameter in step.model.named_parameters()}
    run(step, 3)
    assert not any(torch.equal(before[n], p) for n, p in step.model.named_parameters())
    assert all(torch.equal(step.eval_weights()[n], p) for n, p in step.model.named_parameters())


@pytest.mark.parametrize("num_shards", [1, 2, 3])
def test_the_number_of_threads_changes_no_bit(num_shards: int) -> None:
    """The number of shards may; batches of 43 leave a last one of 5, and shards of unequal size."""
    settings = config(0.9, 0.99, num_shards, nesterov=True)
    states: list[dict[str, Any]] = []
    for num_threads in (1, 2, 4):
        with use_threads(num_threads):
            augment = AugmentConfig(rotation_degrees=10, elastic_pixels=0.5)
            step = make("fast", settings, make_loader(220, 43, augment=augment))
            assert step.num_workers == min(num_threads, num_shards)
        run(step, 12)
        states.append(step.state() | {"sums": step.sums})
    for state in states[1:]:
        assert state["sums"] == states[0]["sums"]
        for part in ("weights", "momentum", "average"):
            torch.testing.assert_close(state[part], states[0][part], rtol=0, atol=0)


def test_choice_of_the_step() -> None:
    def chosen(kind: str, device: str) -> str:
        return choose_step(resolve_config(flags={"train.step": kind}), Custom(), device)

    devices = ("cpu", "cuda", "mps")
    assert [chosen("auto", device) for device in devices] == ["fast", "plain", "plain"]
    assert chosen("plain", "cpu") == "plain"
    with pytest.raises(UsageError, match="does not run on cuda"):
        chosen("fast", "cuda")
