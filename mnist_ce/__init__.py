"""Train, evaluate and use one small network on MNIST, with cross-entropy.

`from mnist_ce import train, evaluate, predict, load_model, MLP` does what the command line does.
Nothing heavy is imported before it is asked for (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mnist_ce.evaluation.evaluate import evaluate
    from mnist_ce.network.model import MLP
    from mnist_ce.prediction.predict import predict
    from mnist_ce.runs.load_model import load_model
    from mnist_ce.training.callbacks import Callback
    from mnist_ce.training.trainer import train

    __version__: str

__all__ = ["MLP", "Callback", "evaluate", "load_model", "predict", "train"]

_HOMES = {
    "Callback": "training.callbacks",
    "MLP": "network.model",
    "evaluate": "evaluation.evaluate",
    "load_model": "runs.load_model",
    "predict": "prediction.predict",
    "train": "training.trainer",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the name stands for
    if name == "__version__":
        return importlib.import_module(f"{__name__}.system.files").version()
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
