"""One epoch of the same network and recipe in other libraries, where they are installed.

    MNIST_CE_DATA_DIR=… python -m benchmarks.peers

scikit-learn's `MLPClassifier` and a JAX epoch (`jit` over `lax.scan`) beside the tutorial loop and
the own steps: 60,000 images, batch 64, SGD at rate 0.01 with momentum 0.5, float32. Compilation is
not counted. `--busy 1` runs an endless loop beside it.
"""

from __future__ import annotations

import importlib.util
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.common import (
    busy_loops,
    interleaved,
    median_range,
    mnist,
    print_table,
    ratios,
    timing_parser,
)
from benchmarks.step import (
    CONDITIONS,
    LEARNING_RATE,
    MOMENTUM,
    TUTORIAL,
    fast_steps,
    own_epoch,
    tutorial_loop,
)
from mnist_ce.network import HIDDEN

BATCH_SIZE = 64


def scikit_learn(images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> Callable[[], float]:
    """Return a task that times an epoch of scikit-learn."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    def run() -> float:
        network = MLPClassifier(
            hidden_layer_sizes=HIDDEN,
            solver="sgd",
            alpha=0.0,
            batch_size=BATCH_SIZE,
            learning_rate_init=LEARNING_RATE,
            momentum=MOMENTUM,
            nesterovs_momentum=False,
            max_iter=1,
            random_state=0,
        )
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            network.fit(images, labels)
        return time.perf_counter() - start

    return run


def jax_epoch(images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> Callable[[], float]:
    """Return a task that times an epoch of JAX, compiled beforehand."""
    import jax
    import jax.numpy as jnp

    sizes = (784, *HIDDEN, 10)
    keys = jax.random.split(jax.random.PRNGKey(0), len(sizes) - 1)
    weights = [
        (jax.random.normal(key, (n, m)) / n**0.5, jnp.zeros(m))
        for key, n, m in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]
    velocity = jax.tree_util.tree_map(jnp.zeros_like, weights)
    x, y = jnp.asarray(images), jnp.asarray(labels)
    num_batches = len(labels) // BATCH_SIZE

    def loss(parameters: Any, batch: Any, targets: Any) -> Any:  # noqa: ANN401
        for weight, bias in parameters[:-1]:
            batch = jax.nn.relu(batch @ weight + bias)
        logits = batch @ parameters[-1][0] + parameters[-1][1]
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[:, None], axis=1)
        return -chosen.mean()

    def step(carry: Any, indices: Any) -> Any:  # noqa: ANN401
        parameters, momenta = carry
        gradients = jax.grad(loss)(parameters, x[indices], y[indices])
        momenta = jax.tree_util.tree_map(lambda v, g: MOMENTUM * v + g, momenta, gradients)
        parameters = jax.tree_util.tree_map(lambda w, v: w - LEARNING_RATE * v, parameters, momenta)
        return (parameters, momenta), 0.0

    @jax.jit  # type: ignore[untyped-decorator,unused-ignore]
    def epoch(carry: Any, key: Any) -> Any:  # noqa: ANN401
        order = jax.random.permutation(key, num_batches * BATCH_SIZE)
        return jax.lax.scan(step, carry, order.reshape(num_batches, BATCH_SIZE))[0]

    carry = epoch((weights, velocity), jax.random.PRNGKey(1))  # compiles

    def run() -> float:
        start = time.perf_counter()
        jax.block_until_ready(epoch(carry, jax.random.PRNGKey(2)))  # type: ignore[no-untyped-call,unused-ignore]
        return time.perf_counter() - start

    return run


def main() -> None:
    """Measure and print."""
    options = timing_parser(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    train = mnist().train
    images = train.images.flatten(1).numpy().astype(np.float32) / 255
    labels = train.labels.numpy()
    tasks = {
        TUTORIAL: tutorial_loop(train, HIDDEN, BATCH_SIZE),
        "plain step": own_epoch("plain", train, HIDDEN, BATCH_SIZE),
        **fast_steps(train),
    }
    for name, module, make in (
        ("scikit-learn MLPClassifier", "sklearn", scikit_learn),
        ("JAX, jit and scan", "jax", jax_epoch),
    ):
        if importlib.util.find_spec(module) is None:
            print(f"skipped: {name} ({module} is not installed)", file=sys.stderr)
        else:
            tasks[name] = make(images, labels)
    with busy_loops(options.busy):
        times = interleaved(tasks, options.repeats)
    print_table(
        f"One epoch of 60,000 images, batch 64, {CONDITIONS.format(**vars(options))}",
        {"": str, "seconds": median_range(2), "× the fast step, 2 workers": median_range(2)},
        [
            (name, values, ratios(values, times["fast step, 2 workers"]))
            for name, values in times.items()
        ],
        as_json=options.json,
    )


if __name__ == "__main__":
    main()
