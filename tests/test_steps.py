"""The fast steps equal the plain one."""

from __future__ import annotations

import itertools
import statistics
from typing import Any

import pytest
import torch
from torch import Tensor

from mnist_ce.config import AugmentConfig
from mnist_ce.data.loader import DeviceLoader
from mnist_ce.network.linear_ops import OneDnnProducts, TorchProducts
from mnist_ce.network.model import MLP
from mnist_ce.network.objective import Binary, Multiclass, Objective
from mnist_ce.system.errors import UsageError
from mnist_ce.training.steps import (
    NonFiniteLossError,
    OptimizerSettings,
    Step,
    choose_step,
    fast,
    make_step,
)
from mnist_ce.training.steps.cuda_graph import CudaGraphStep
from mnist_ce.training.steps.fast import FastStep
from mnist_ce.training.steps.plain import PlainStep

SETTINGS = [
    OptimizerSettings(momentum=0.5),
    OptimizerSettings(momentum=0.0),
    OptimizerSettings(momentum=0.9, nesterov=True),
    OptimizerSettings(momentum=0.9, weight_decay=1e-3),
    OptimizerSettings(momentum=0.9, nesterov=True, weight_decay=1e-3, average_decay=0.99),
]


def make_batches(num_images: int = 650, batch_size: int = 64, **options: Any) -> DeviceLoader:
    generator = torch.Generator().manual_seed(1)
    # Ten blurry prototypes with noise: something that can be learned, so that gradients are real.
    prototypes = torch.rand(10, 28, 28, generator=generator)
    labels = torch.randint(0, 10, (num_images,), generator=generator)
    noise = torch.rand(num_images, 28, 28, generator=generator)
    images = ((0.7 * prototypes[labels] + 0.3 * noise) * 255).to(torch.uint8)
    return DeviceLoader(images, labels, batch_size=batch_size, seed=3, **options)


def new_step(
    kind: str, model: MLP, batches: DeviceLoader, objective: Objective, settings: OptimizerSettings
) -> Step:
    """Without a GPU, the CUDA graph's body runs as it is at each replay."""
    if kind == "cuda-graph":
        return CudaGraphStep(model, batches, objective, settings, capture=lambda body: body)
    return make_step(kind, model, batches, objective, settings)


def run(
    kind: str,
    settings: OptimizerSettings,
    num_steps: int,
    batches: DeviceLoader,
    objective: Objective | None = None,
    num_outputs: int = 10,
    hidden: tuple[int, ...] = (520, 320, 240, 120),
) -> Step:
    torch.manual_seed(0)
    model = MLP(hidden, num_outputs)
    step = new_step(kind, model, batches, objective or Multiclass(), settings)
    done = 0
    for epoch in itertools.count(1):
        step.start_epoch()
        for indices in batches.epoch(epoch):
            step(indices, 0.05 / (1 + done / 100))  # a rate that changes at every step
            done += 1
            if done == num_steps:
                return step
    raise AssertionError


class Exact(PlainStep):
    """The plain step in float64."""

    def __init__(self, settings: OptimizerSettings) -> None:
        batches = make_batches()
        super().__init__(MLP().double(), batches, Multiclass(), settings)
        gather = batches.gather

        def in_float64(*arguments: Any) -> tuple[Tensor, Tensor]:
            images, labels = gather(*arguments)
            return images.double(), labels

        batches.gather = in_float64  # type: ignore[method-assign,assignment]


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference, relative to the largest weight of the same tensor."""
    return max(
        float((one[n].double() - w.double()).abs().max() / w.abs().max()) for n, w in other.items()
    )


@pytest.mark.parametrize("settings", SETTINGS)
def test_fast_step_equals_plain_step(settings: OptimizerSettings) -> None:
    """Each of 44 steps, begun from the same state.

    Runs that are left alone drift apart by more than rounding whenever a ReLU's input is so near
    zero that rounding decides its sign; the plain step and float64 drift apart in the same way.
    """
    batches = make_batches()
    torch.manual_seed(0)
    plain = make_step("plain", MLP(), batches, Multiclass(), settings)
    fast = make_step("fast", MLP(), batches, Multiclass(), settings)
    exact = Exact(settings)
    differences, fast_errors, plain_errors = [], [], []
    for epoch in itertools.count(1):
        plain.start_epoch()
        fast.start_epoch()
        for indices in batches.epoch(epoch):
            for step in (fast, exact):
                step.load_state(plain.state())
            rate = 0.05 / (1 + plain.num_steps / 100)
            for step in (plain, fast, exact):
                step(indices, rate)
            differences.append(difference(fast.state()["weights"], plain.state()["weights"]))
            fast_errors.append(difference(fast.state()["weights"], exact.state()["weights"]))
            plain_errors.append(difference(plain.state()["weights"], exact.state()["weights"]))
        if epoch == 1:
            assert fast.totals().num_correct == plain.totals().num_correct
            assert fast.totals().loss == pytest.approx(plain.totals().loss, rel=1e-5)
            assert fast.totals().num_examples == plain.totals().num_examples == 650
        if plain.num_steps >= 44:
            break
    assert difference(fast.weights(), plain.weights()) <= 1e-5
    undecided = sum(value > 1e-5 for value in differences)
    assert undecided <= 2, differences
    assert statistics.median(differences) <= 1e-6
    assert statistics.median(fast_errors) <= 2 * statistics.median(plain_errors)


@pytest.mark.parametrize("kind", ["fast", "cuda-graph"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_fast_run_equals_plain_run(settings: OptimizerSettings, kind: str) -> None:
    """200 steps left alone, with so few ReLUs that none is likely to hang on rounding."""
    plain = run("plain", settings, 200, make_batches(), hidden=(12, 10))
    fast = run(kind, settings, 200, make_batches(), hidden=(12, 10))
    assert fast.totals().num_correct == plain.totals().num_correct
    assert fast.totals().loss == pytest.approx(plain.totals().loss, rel=1e-5)
    assert difference(fast.weights(), plain.weights()) <= 1e-5


@pytest.mark.parametrize("kind", ["plain", "fast", "cuda-graph"])
def test_steps_see_the_same_batches_and_distortions(kind: str) -> None:
    augment = AugmentConfig(rotation_degrees=10, shift_pixels=1, elastic_pixels=0.5)
    settings = OptimizerSettings(momentum=0.9, nesterov=True)
    batches = make_batches(augment=augment, last_augmented_epoch=1)
    again = make_batches(augment=augment, last_augmented_epoch=1)
    one, other = run("plain", settings, 15, batches), run(kind, settings, 15, again)
    for name, expected in one.weights().items():
        assert (other.weights()[name] - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("kind", ["plain", "fast", "cuda-graph"])
def test_binary_objective(kind: str) -> None:
    batches = make_batches()
    batches.labels = (batches.labels == 7).long()
    step = run(kind, SETTINGS[0], 60, batches, Binary(), num_outputs=1, hidden=(20,))
    expected = run("plain", SETTINGS[0], 60, batches, Binary(), num_outputs=1, hidden=(20,))
    for name, weights in expected.weights().items():
        assert torch.allclose(step.weights()[name], weights, atol=1e-6)
    assert step.totals().accuracy > 0.8


@pytest.mark.parametrize("kind", ["plain", "fast", "cuda-graph"])
def test_one_batch_can_be_overfitted(kind: str) -> None:
    batches = make_batches(num_images=64)
    step = run(kind, OptimizerSettings(momentum=0.9), 150, batches)
    assert step.totals().loss < 0.01
    assert step.totals().num_correct == 64


@pytest.mark.parametrize("kind", ["plain", "fast"])
def test_non_finite_loss_stops_before_the_update(kind: str) -> None:
    step = run(kind, SETTINGS[-1], 5, make_batches())
    assert isinstance(step, PlainStep | FastStep)
    model = step.model
    assert isinstance(model, MLP)
    with torch.no_grad():
        model.layers[0].bias[0] = float("nan")
    before = {name: t.clone() for name, t in step.state()["weights"].items()}
    averaged = {name: t.clone() for name, t in step.weights().items()}
    with pytest.raises(NonFiniteLossError) as caught:
        step(torch.arange(64), 0.1)
    assert caught.value.step == 5
    for name, tensor in step.state()["weights"].items():
        assert torch.equal(tensor, before[name]) or torch.isnan(tensor).any()
    assert all(torch.equal(t, averaged[name]) for name, t in step.weights().items())


@pytest.mark.parametrize(
    ("saved_by", "loaded_by"), list(itertools.product(["plain", "fast", "cuda-graph"], repeat=2))
)
def test_state_continues_with_any_kind(saved_by: str, loaded_by: str) -> None:
    settings, batches = SETTINGS[-1], make_batches()
    whole = run(saved_by, settings, 8, batches)
    half = run(saved_by, settings, 4, batches)
    torch.manual_seed(5)
    rest = new_step(loaded_by, MLP(), batches, Multiclass(), settings)
    rest.load_state(half.state())
    for indices in list(batches.epoch(1))[4:8]:
        rest(indices, 0.05 / (1 + rest.num_steps / 100))
    for name, expected in whole.weights().items():
        if saved_by == loaded_by:
            assert torch.equal(rest.weights()[name], expected)
        else:
            assert torch.allclose(rest.weights()[name], expected, atol=1e-6)


def test_fast_step_updates_the_model_in_place() -> None:
    model, batches = MLP(), make_batches()
    step = make_step("fast", model, batches, Multiclass(), SETTINGS[0])
    places = [parameter.data_ptr() for parameter in model.parameters()]
    third = model.layers[2].weight
    before = third.detach().clone()
    for indices in batches.epoch(1):
        step(indices, 0.1)
    assert [parameter.data_ptr() for parameter in model.parameters()] == places
    assert not torch.equal(third, before)
    assert all(torch.equal(step.weights()[n], p) for n, p in model.named_parameters())


@pytest.mark.parametrize("products", [TorchProducts, OneDnnProducts])
@pytest.mark.parametrize("num_images", [20, 64])
def test_products_equal_their_formulas(products: type[TorchProducts], num_images: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images, gradient = (torch.randn(num_images, n, generator=generator) for n in (300, 260))
    weight = torch.randn(260, 300, generator=generator)  # large enough for every path
    bias = weight[:, 0].clone()
    tools = products()
    for_weight = gradient.double().T @ images.double()
    assert torch.allclose(tools.weight_gradient(gradient, images).double(), for_weight, atol=1e-4)
    linear = images.double() @ weight.double().T + bias.double()
    assert torch.allclose(tools.linear(images, weight, bias).double(), linear, atol=1e-4)
    passed_down = gradient.double() @ weight.double()
    assert torch.allclose(tools.input_gradient(gradient, weight).double(), passed_down, atol=1e-4)


def test_fast_step_works_without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "best_products", TorchProducts)
    plain = run("plain", SETTINGS[-1], 60, make_batches(), hidden=(12, 10))
    without = run("fast", SETTINGS[-1], 60, make_batches(), hidden=(12, 10))
    assert difference(without.weights(), plain.weights()) <= 1e-5


def test_cuda_graph_step_does_nothing_after_a_loss_that_is_not_finite() -> None:
    step = run("cuda-graph", SETTINGS[-1], 5, make_batches())
    assert isinstance(step, CudaGraphStep)
    before = {name: tensor.clone() for name, tensor in step.weights().items()}
    good = step.totals()
    bias = step.model.layers[-1].bias.detach()
    kept = bias.clone()
    bias[0] = float("inf")
    step(torch.arange(64), 0.1)  # the loss is infinite or NaN, and nobody asks yet
    bias.copy_(kept)
    step(torch.arange(64), 0.1)  # would be fine, but comes after
    assert all(torch.equal(tensor, before[name]) for name, tensor in step.weights().items())
    assert float(step.loss_sum) == good.loss_sum
    for ask in (step.totals, step.state):
        with pytest.raises(NonFiniteLossError) as caught:
            ask()
        assert caught.value.step == 5


@pytest.mark.parametrize(
    ("kind", "device", "chosen"),
    [
        ("auto", "cpu", "fast"),
        ("auto", "cuda", "cuda-graph"),
        ("auto", "mps", "plain"),
        ("plain", "cuda", "plain"),
        ("fast", "cpu", "fast"),
    ],
)
def test_choice_of_the_step(kind: str, device: str, chosen: str) -> None:
    assert choose_step(kind, device) == chosen


@pytest.mark.parametrize(
    ("kind", "device"), [("fast", "cuda"), ("cuda-graph", "cpu"), ("fast", "mps")]
)
def test_step_that_does_not_fit_the_device(kind: str, device: str) -> None:
    with pytest.raises(UsageError, match=f"does not run on {device}"):
        choose_step(kind, device)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")
@pytest.mark.parametrize("settings", SETTINGS)
def test_captured_graph_equals_plain_step(settings: OptimizerSettings) -> None:
    def on_gpu(kind: str) -> Step:
        batches = make_batches()
        batches = DeviceLoader(batches.images.cuda(), batches.labels.cuda(), batch_size=64, seed=3)
        torch.manual_seed(0)
        step = make_step(kind, MLP((12, 10)).cuda(), batches, Multiclass(), settings)
        for epoch in range(1, 6):
            step.start_epoch()
            for indices in batches.epoch(epoch):
                step(indices, 0.05 / epoch)
        return step

    plain, graph = on_gpu("plain"), on_gpu("cuda-graph")
    assert difference(graph.weights(), plain.weights()) <= 1e-5
    assert graph.totals().num_correct == plain.totals().num_correct
