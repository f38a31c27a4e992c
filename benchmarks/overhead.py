"""Start-up time and peak memory of whole processes.

    MNIST_CE_DATA_DIR=… python -m benchmarks.overhead

Limits: `--help` 3 × `import typer`; `predict` of one image 1.35 × `import torch`; MNIST in memory
0.5 s after the imports; a default run 450 MB above `import torch, torchvision`. POSIX only.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from PIL import Image

from benchmarks.common import interleaved, median_range, print_table, ratios, timing_parser

# Linux counts the parent's peak before `exec` too, so only larger processes can be measured.
LARGE = ("import torch, torchvision", "mnist-ce train")
LOAD = """
import time
import mnist_ce.training.training, torchvision.datasets
from benchmarks.common import mnist
start = time.perf_counter()
mnist()
print(time.perf_counter() - start)
"""


def run_process(*words: str) -> tuple[float, float]:
    """Return the wall time in seconds and the peak resident memory in MB of a Python process."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"python {' '.join(words)} failed")
    return seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def main() -> None:
    """Measure and print."""
    parser = timing_parser(__doc__)
    parser.add_argument("--epochs", type=int, default=2, help="of the run; epoch 1 has the peak")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "blank.png"
        Image.new("L", (100, 100), 255).save(image)
        train = ["train", "--dataset", "mnist", "--epochs", str(options.epochs), "--output", folder]
        commands = {
            "python -c pass": ["-c", "pass"],
            "import typer": ["-c", "import typer"],
            "mnist-ce --help": ["-m", "mnist_ce", "--help"],
            "mnist-ce --version": ["-m", "mnist_ce", "--version"],
            "import torch": ["-c", "import torch"],
            "mnist-ce predict, one image": [
                *("-m", "mnist_ce", "predict", "--checkpoint", "pretrained", str(image))
            ],
            "import torch, torchvision": ["-c", "import torch, torchvision"],
            "mnist-ce train": ["-m", "mnist_ce", *train, "--threads", str(options.threads)],
        }
        tasks = {name: partial(run_process, *words) for name, words in commands.items()}
        results = interleaved(tasks, options.repeats)
    loading = [
        float(subprocess.check_output([sys.executable, "-c", LOAD], text=True))
        for _ in range(options.repeats)
    ]
    seconds = {name: [time for time, _ in values] for name, values in results.items()}
    rows = [
        (
            name,
            seconds[name],
            ratios(seconds[name], seconds["import typer"]),
            ratios(seconds[name], seconds["import torch"]),
            [peak for _, peak in values] if name in LARGE else None,
        )
        for name, values in results.items()
    ]
    print_table(
        f"Whole processes, median (min to max) of {options.repeats} interleaved rounds",
        {
            "process": str,
            "seconds": median_range(3),
            "× import typer": median_range(2),
            "× import torch": median_range(2),
            "peak memory, MB": median_range(0),
        },
        [*rows, ("MNIST in memory, after the imports", loading, None, None, None)],
        as_json=options.json,
    )


if __name__ == "__main__":
    main()
