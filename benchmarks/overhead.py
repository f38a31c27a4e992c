"""Start-up time and peak memory of whole processes.

    MNIST_CE_DATA_DIR=… python -m benchmarks.overhead

Limits: `--help` 3 × `import typer`; `predict` of one image 1.35 × `import torch`; MNIST in memory
0.5 s after the imports; a default run 450 MB above `import torch, torchvision`. POSIX only.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from PIL import Image

from benchmarks.common import interleaved, median_range, print_table, ratios, timing_parser

LOAD = """
import time
import mnist_ce.training.trainer, torchvision.datasets
from benchmarks.common import mnist
start = time.perf_counter()
mnist()
print(time.perf_counter() - start)
"""
PEAK = """
import resource, runpy, sys
try:
    {work}
except SystemExit:
    pass
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(peak * (1 if sys.platform == "darwin" else 1024) / 1e6, file=sys.stderr)
"""
TRAIN = "runpy.run_module('mnist_ce', run_name='__main__', alter_sys=True)"


def wall_seconds(*words: str) -> float:
    """Return the wall time of a Python process."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    return time.perf_counter() - start


def peak_megabytes(work: str, *words: str) -> float:
    """Return the peak resident memory of a Python process before it exits."""
    command = [sys.executable, "-c", PEAK.format(work=work), *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stderr.splitlines()[-1])


def main() -> None:
    """Measure and print."""
    parser = timing_parser(__doc__)
    parser.add_argument("--epochs", type=int, default=2, help="of the run; epoch 1 has the peak")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "blank.png"
        Image.new("L", (100, 100), 255).save(image)
        predict = ("-m", "mnist_ce", "predict", "--checkpoint", "mnist", str(image))
        commands = {
            "python -c pass": ("-c", "pass"),
            "import typer": ("-c", "import typer"),
            "mnist-ce --help": ("-m", "mnist_ce", "--help"),
            "mnist-ce --version": ("-m", "mnist_ce", "--version"),
            "import torch": ("-c", "import torch"),
            "mnist-ce predict, one image": predict,
        }
        tasks = {name: partial(wall_seconds, *words) for name, words in commands.items()}
        times = interleaved(tasks, options.repeats)
        train = ["train", "--dataset", "mnist", "--epochs", str(options.epochs), "--output", folder]
        train += ["--threads", str(options.threads)]
        peak_tasks = {
            "import torch, torchvision": partial(peak_megabytes, "import torch, torchvision"),
            "mnist-ce train": partial(peak_megabytes, TRAIN, *train),
        }
        peaks = interleaved(peak_tasks, options.repeats)
    loading = [
        float(subprocess.check_output([sys.executable, "-c", LOAD], text=True))
        for _ in range(options.repeats)
    ]
    typer, torch = times["import typer"], times["import torch"]
    base = statistics.median(peaks["import torch, torchvision"])
    print_table(
        f"Whole processes, median (min to max) of {options.repeats} interleaved rounds",
        {
            "process": str,
            "seconds": median_range(3),
            "× import typer": median_range(2),
            "× import torch": median_range(2),
            "peak memory, MB": median_range(0),
            "above torch, torchvision": "{:.0f}".format,
        },
        [
            *(
                (name, values, ratios(values, typer), ratios(values, torch), None, None)
                for name, values in times.items()
            ),
            ("MNIST in memory, after the imports", loading, None, None, None, None),
            *(
                (name, None, None, None, values, statistics.median(values) - base)
                for name, values in peaks.items()
            ),
        ],
        as_json=options.json,
    )


if __name__ == "__main__":
    main()
