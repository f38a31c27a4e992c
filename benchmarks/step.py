"""The cost of a training step beside its floor: the 14 matrix products of the step alone.

All are run in turn in one process: the floor, the tutorial loop (`DataLoader` over torchvision's
MNIST), the plain step and the fast step. `--growth` prints how the cost grows with batch and width,
`--augment best` what the distortions of a recipe add.

    MNIST_CE_DATA_DIR=… python benchmarks/step.py
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from common import arguments, interleaved, ratios, report, spread
from torch import Tensor, nn

from mnist_ce.config import AugmentConfig, OptimizerConfig, resolve_config
from mnist_ce.data.dataset import Split, load_dataset
from mnist_ce.data.loader import DeviceLoader
from mnist_ce.evaluation.inference import evaluate
from mnist_ce.network import HIDDEN
from mnist_ce.network.model import MLP
from mnist_ce.network.objective import Multiclass
from mnist_ce.training.steps import make_step

LEARNING_RATE, MOMENTUM = 0.01, 0.5


def floor(hidden: Sequence[int], batch_size: int, num_steps: int) -> Callable[[], float]:
    """Return a task that does the products of so many steps, and nothing else.

    Per layer one product forward, one for the weight's gradient and, above the first, one for the
    input's gradient: 5 + 5 + 4 for the default network, by `torch.mm` into preallocated tensors.
    """
    sizes = (784, *hidden, 10)
    generator = torch.Generator().manual_seed(0)
    activations = [torch.rand(batch_size, size, generator=generator) for size in sizes]
    gradients = [torch.randn(batch_size, size, generator=generator) for size in sizes]
    weights = [
        torch.randn(outputs, inputs, generator=generator)
        for inputs, outputs in itertools.pairwise(sizes)
    ]
    outputs = [torch.empty(batch_size, size) for size in sizes]
    weight_gradients = [torch.empty_like(weight) for weight in weights]

    @torch.inference_mode()
    def run() -> float:
        start = time.perf_counter()
        for _ in range(num_steps):
            for layer, weight in enumerate(weights):
                torch.mm(activations[layer], weight.t(), out=outputs[layer + 1])
            for layer in reversed(range(len(weights))):
                torch.mm(gradients[layer + 1].t(), activations[layer], out=weight_gradients[layer])
                if layer:
                    torch.mm(gradients[layer + 1], weights[layer], out=outputs[layer])
        return time.perf_counter() - start

    return run


def tutorial_loop(train: Split, hidden: Sequence[int], batch_size: int) -> Callable[[], float]:
    """Return a task that trains one epoch as tutorials do: one PIL picture at a time."""
    from torchvision.datasets import MNIST
    from torchvision.transforms import ToTensor

    dataset = MNIST.__new__(MNIST)  # the images are in memory already, as after MNIST(root)
    dataset.data, dataset.targets = train.images, train.labels
    dataset.transform, dataset.target_transform = ToTensor(), None
    loader = torch.utils.data.DataLoader(dataset, batch_size, shuffle=True, num_workers=0)
    model, loss_function = MLP(hidden), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)

    def run() -> float:
        start = time.perf_counter()
        for images, labels in loader:
            optimizer.zero_grad()
            loss = loss_function(model(images), labels)
            loss.backward()
            optimizer.step()
        return time.perf_counter() - start

    return run


def own_epoch(
    kind: str,
    train: Split,
    hidden: Sequence[int],
    batch_size: int,
    augment: AugmentConfig | None = None,
) -> Callable[[], float]:
    """Return a task that trains one epoch with a step of this program."""
    torch.manual_seed(0)
    batches = DeviceLoader(
        train.images, train.labels, batch_size=batch_size, seed=0, augment=augment
    )
    optimizer = OptimizerConfig(momentum=MOMENTUM)
    step = make_step(kind, MLP(hidden), batches, Multiclass(), optimizer)
    epoch = 0

    def run() -> float:
        nonlocal epoch
        epoch += 1
        start = time.perf_counter()
        step.reset_metrics()
        for indices in batches.epoch(epoch):
            step(indices, LEARNING_RATE)
        step.metrics()
        return time.perf_counter() - start

    return run


def evaluation(train: Split) -> Callable[[], float]:
    """Return a task that evaluates the network on the whole training set."""
    model = MLP()

    def run() -> float:
        start = time.perf_counter()
        evaluate(model, train.images, train.labels, Multiclass())
        return time.perf_counter() - start

    return run


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__)
    parser.add_argument("--growth", action="store_true", help="batch sizes and widths instead")
    parser.add_argument("--augment", metavar="CONFIG", help="the cost of a recipe's distortions")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    train = load_dataset("mnist", Path(resolve_config().data.dir)).train
    if options.growth:
        growth(train, options.repeats, as_json=options.json)
        return
    if options.augment:
        distortion(train, options.augment, options.repeats, as_json=options.json)
        return
    num_steps = -(-len(train) // 64)
    times = interleaved(
        {
            "floor: 14 products by torch.mm": floor(HIDDEN, 64, num_steps),
            "tutorial loop": tutorial_loop(train, HIDDEN, 64),
            "plain step": own_epoch("plain", train, HIDDEN, 64),
            "fast step": own_epoch("fast", train, HIDDEN, 64),
            "evaluation of as many images": evaluation(train),
        },
        options.repeats,
    )
    base, tutorial = times["floor: 14 products by torch.mm"], times["tutorial loop"]
    rows = [
        (
            name,
            spread(values, 3),
            spread(ratios(values, base), 2),
            spread(ratios(tutorial, values), 2),
        )
        for name, values in times.items()
    ]
    report(
        f"One epoch of 60,000 images, batch 64, {options.threads} threads, median (min to max) of "
        f"{options.repeats} interleaved rounds",
        ["", "seconds", "× the floor", "× faster than the tutorial loop"],
        rows,
        as_json=options.json,
    )


def growth(train: Split, repeats: int, *, as_json: bool) -> None:
    """Print the time of an epoch for several batch sizes and widths, each beside its floor."""
    rows = []
    cases = [(batch_size, 1) for batch_size in (16, 64, 256, 1024)] + [(64, 2), (64, 4)]
    for batch_size, factor in cases:
        hidden = [width * factor for width in HIDDEN]
        part = Split(*(share(tensor, factor) for tensor in (train.images, train.labels)))
        times = interleaved(
            {
                "floor": floor(hidden, batch_size, -(-len(part) // batch_size)),
                "fast": own_epoch("fast", part, hidden, batch_size),
            },
            repeats,
        )
        scale = len(train) / len(part)
        rows.append(
            (
                batch_size,
                f"×{factor}",
                f"{scale * statistics.median(times['floor']):.2f}",
                f"{scale * statistics.median(times['fast']):.2f}",
                spread(ratios(times["fast"], times["floor"]), 2),
            )
        )
    report(
        f"Seconds per epoch of 60,000 images as work grows, median of {repeats} interleaved rounds "
        "(wider networks timed on a part of the images and scaled)",
        ["batch", "widths", "floor", "fast step", "× the floor"],
        rows,
        as_json=as_json,
    )


def distortion(train: Split, config: str, repeats: int, *, as_json: bool) -> None:
    """Print what the distortions of a recipe add to the plain and to the fast step."""
    strengths = resolve_config(config).augment
    batch_size, part = 128, Split(train.images[:6_400], train.labels[:6_400])
    kinds = ("plain", "fast")
    times = interleaved(
        {
            f"{kind} {name}": own_epoch(kind, part, HIDDEN, batch_size, augment)
            for kind in kinds
            for name, augment in (("as it is", None), ("distorted", strengths))
        },
        repeats,
    )
    per_step = 1000 / (len(part) // batch_size)  # milliseconds
    rows = [
        (
            f"{kind} step",
            *(
                spread([per_step * value for value in times[f"{kind} {name}"]], 2)
                for name in ("as it is", "distorted")
            ),
            spread(
                [
                    100 * (ratio - 1)
                    for ratio in ratios(times[f"{kind} distorted"], times[f"{kind} as it is"])
                ],
                0,
            ),
        )
        for kind in kinds
    ]
    report(
        f"Milliseconds per step of {batch_size} images, as they are and distorted as in {config}, "
        f"{torch.get_num_threads()} threads, median (min to max) of {repeats} interleaved rounds",
        ["", "as they are", "distorted", "added, %"],
        rows,
        as_json=as_json,
    )


def share(tensor: Tensor, factor: int) -> Tensor:
    """Return the first 1/factor² of a tensor, in whole batches of 64."""
    return tensor[: len(tensor) // factor**2 // 64 * 64] if factor > 1 else tensor


if __name__ == "__main__":
    main()
