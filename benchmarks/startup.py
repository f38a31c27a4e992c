"""How long the program takes to begin: whole processes, run in turn.

    MNIST_CE_DATA_DIR=… python benchmarks/startup.py

Bars: `--help` ≤ 3 × `import typer`; `predict` of one picture ≤ 1.35 × `import torch`; MNIST in
memory ≤ 0.5 s after `train`'s imports.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
from common import arguments, command_seconds, interleaved, ratios, report, spread
from PIL import Image

from mnist_ce.config import resolve_config
from mnist_ce.network.model import MLP
from mnist_ce.runs.checkpoint import save_tensors

LOAD = """
import time
import mnist_ce.training.trainer, torchvision.datasets
from pathlib import Path
from mnist_ce.data.dataset import load_dataset
start = time.perf_counter()
load_dataset("mnist", Path({folder!r}))
print(time.perf_counter() - start)
"""


def python(*words: str) -> list[str]:
    """Return a command of this interpreter."""
    return [sys.executable, *words]


def loading_seconds(folder: str) -> float:
    """Return how long loading MNIST takes in a fresh process, after the imports."""
    command = python("-c", LOAD.format(folder=folder))
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(answer.stdout)


def main() -> None:
    """Measure and print."""
    options = arguments(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, picture = Path(folder) / "model.pt", Path(folder) / "seven.png"
        torch.manual_seed(0)
        save_tensors(checkpoint, MLP().state_dict())
        Image.new("L", (100, 100), 255).save(picture)
        predict = python("-m", "mnist_ce", "predict", "--checkpoint", str(checkpoint), str(picture))
        commands = {
            "python -c pass": python("-c", "pass"),
            "python -c 'import typer'": python("-c", "import typer"),
            "mnist-ce --help": python("-m", "mnist_ce", "--help"),
            "mnist-ce --version": python("-m", "mnist_ce", "--version"),
            "python -c 'import torch'": python("-c", "import torch"),
            "mnist-ce predict, one picture": predict,
        }
        times = interleaved(
            {name: partial(command_seconds, words) for name, words in commands.items()},
            options.repeats,
        )
    loading = [loading_seconds(resolve_config().data.dir) for _ in range(options.repeats)]
    typer, torch_import = times["python -c 'import typer'"], times["python -c 'import torch'"]
    rows = [
        (
            name,
            spread(values, 3),
            spread(ratios(values, typer), 2),
            spread(ratios(values, torch_import), 2),
        )
        for name, values in times.items()
    ]
    rows.append(("MNIST in memory, after the imports", spread(loading, 3), "", ""))
    report(
        f"Whole processes, median (min to max) of {options.repeats} interleaved rounds",
        ["", "seconds", "× import typer", "× import torch"],
        rows,
        as_json=options.json,
    )


if __name__ == "__main__":
    main()
