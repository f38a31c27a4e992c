"""The cost of a training step beside its 14 matrix products alone and the usual tutorial loop.

    MNIST_CE_DATA_DIR=… python -m benchmarks.step --repeats 15

All run in turn in one process. The tutorial loop is a `DataLoader` over torchvision's MNIST.
`--busy 1` runs an endless loop beside it, `--growth` shows how the cost grows with batch size and
width, `--augment best` what the distortions of a recipe add.
"""

from __future__ import annotations

import itertools
import time
from argparse import Namespace
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from benchmarks.common import (
    busy_loops,
    interleaved,
    median_range,
    mnist,
    print_table,
    ratios,
    timing_parser,
)
from mnist_ce.config import AugmentConfig, resolve_config
from mnist_ce.data.loader import DeviceLoader
from mnist_ce.data.splits import Split
from mnist_ce.evaluation.evaluate import predict_split
from mnist_ce.network import HIDDEN
from mnist_ce.network.model import MLP
from mnist_ce.network.objective import Multiclass
from mnist_ce.system.device import use_threads
from mnist_ce.training.steps.fast import FastStep
from mnist_ce.training.steps.plain import PlainStep

LEARNING_RATE, MOMENTUM = 0.01, 0.5
PRODUCTS, TUTORIAL = "14 products by torch.mm", "tutorial loop"
CONDITIONS = (
    "{threads} threads, {busy} busy loops, median (min to max) of {repeats} interleaved rounds"
)


def matrix_products(hidden: Sequence[int], batch_size: int, num_steps: int) -> Callable[[], float]:
    """Return a task that times only the matrix products of so many steps.

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
    """Return a task that times an epoch of the tutorial loop: one PIL image at a time."""
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
    threads: int = 0,
) -> Callable[[], float]:
    """Return a task that times an epoch of one of this package's steps (0: torch's threads)."""
    torch.manual_seed(0)
    batches = DeviceLoader(
        train.images, train.labels, batch_size=batch_size, seed=0, augment=augment
    )
    config = resolve_config(flags={"optimizer.momentum": MOMENTUM}, environment={})
    with use_threads(threads):  # the fast step's number of workers
        make_step = {"plain": PlainStep, "fast": FastStep}[kind]
        step = make_step(MLP(hidden), batches, Multiclass(), config)
    epochs = itertools.count(1)

    def run() -> float:
        start = time.perf_counter()
        for indices in batches.epoch(next(epochs)):
            step(indices, LEARNING_RATE)
        return time.perf_counter() - start

    return run


def fast_steps(train: Split) -> dict[str, Callable[[], float]]:
    """Return tasks that time an epoch of the fast step with one worker and with two."""
    return {
        f"fast step, {name}": own_epoch("fast", train, HIDDEN, 64, threads=threads)
        for threads, name in ((1, "1 worker"), (2, "2 workers"))
    }


def evaluation(train: Split) -> Callable[[], float]:
    """Return a task that times an evaluation on the whole training set."""
    model = MLP()

    def run() -> float:
        start = time.perf_counter()
        predict_split(model, train.images, train.labels, Multiclass())
        return time.perf_counter() - start

    return run


def compare_steps(train: Split, options: Namespace) -> None:
    """Print the time of an epoch of each step beside the products and the tutorial loop."""
    tasks = {
        PRODUCTS: matrix_products(HIDDEN, 64, -(-len(train) // 64)),
        TUTORIAL: tutorial_loop(train, HIDDEN, 64),
        "plain step": own_epoch("plain", train, HIDDEN, 64),
        **fast_steps(train),
        "evaluation of as many images": evaluation(train),
    }
    times = interleaved(tasks, options.repeats)
    conditions = CONDITIONS.format(**vars(options))
    print_table(
        f"One epoch of 60,000 images, batch 64, {conditions}",
        {
            "": str,
            "seconds": median_range(3),
            "× the products": median_range(2),
            "× faster than the tutorial loop": median_range(2),
        },
        [
            (name, values, ratios(values, times[PRODUCTS]), ratios(times[TUTORIAL], values))
            for name, values in times.items()
        ],
        as_json=options.json,
    )


def compare_sizes(train: Split, options: Namespace) -> None:
    """Print the time of an epoch for several batch sizes and widths, beside its products."""
    rows = []
    for batch_size, factor in ((16, 1), (64, 1), (256, 1), (1024, 1), (64, 2), (64, 4)):
        hidden = [width * factor for width in HIDDEN]
        part = Split(*(_part(tensor, factor) for tensor in (train.images, train.labels)))
        tasks = {
            "products": matrix_products(hidden, batch_size, -(-len(part) // batch_size)),
            "fast": own_epoch("fast", part, hidden, batch_size),
        }
        times = interleaved(tasks, options.repeats)
        scale = len(train) / len(part)
        seconds = [[scale * value for value in values] for values in times.values()]
        rows.append((batch_size, factor, *seconds, ratios(times["fast"], times["products"])))
    conditions = CONDITIONS.format(**vars(options))
    print_table(
        f"Seconds per epoch of 60,000 images as work grows, {conditions} (wider networks timed on "
        "a part of the images and scaled)",
        {
            "batch": str,
            "widths": "×{}".format,
            "products": median_range(2),
            "fast step": median_range(2),
            "× the products": median_range(2),
        },
        rows,
        as_json=options.json,
    )


def _part(tensor: Tensor, factor: int) -> Tensor:
    """Return the first 1/factor² of a tensor, in whole batches of 64."""
    return tensor[: len(tensor) // factor**2 // 64 * 64] if factor > 1 else tensor


def compare_augmentation(train: Split, options: Namespace) -> None:
    """Print what the distortions of a recipe add to the plain and the fast step."""
    augment = resolve_config(options.augment).augment
    batch_size, part = 128, Split(train.images[:6_400], train.labels[:6_400])
    tasks = {
        (kind, distorted): own_epoch(kind, part, HIDDEN, batch_size, augment if distorted else None)
        for kind in ("plain", "fast")
        for distorted in (False, True)
    }
    times = interleaved(tasks, options.repeats)
    to_milliseconds = 1000 / (len(part) // batch_size)  # per step
    rows = []
    for kind in ("plain", "fast"):
        undistorted, distorted = times[kind, False], times[kind, True]
        columns = [[to_milliseconds * t for t in values] for values in (undistorted, distorted)]
        added = [100 * (ratio - 1) for ratio in ratios(distorted, undistorted)]
        rows.append((f"{kind} step", *columns, added))
    conditions = CONDITIONS.format(**vars(options))
    print_table(
        f"Milliseconds per step of {batch_size} images with the distortions of {options.augment}, "
        f"{conditions}",
        {
            "": str,
            "undistorted": median_range(2),
            "distorted": median_range(2),
            "added, %": median_range(0),
        },
        rows,
        as_json=options.json,
    )


def main() -> None:
    """Measure and print."""
    parser = timing_parser(__doc__)
    parser.add_argument("--growth", action="store_true", help="batch sizes and widths instead")
    parser.add_argument("--augment", metavar="CONFIG", help="the cost of a recipe's distortions")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    compare = compare_augmentation if options.augment else compare_steps
    with busy_loops(options.busy):
        (compare_sizes if options.growth else compare)(mnist().train, options)


if __name__ == "__main__":
    main()
