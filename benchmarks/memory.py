"""Peak resident memory of the default training run beside that of its imports alone.

    MNIST_CE_DATA_DIR=… python benchmarks/memory.py

Bar: ≤ `import torch, torchvision` + 450 MB. POSIX only (`resource`).
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile

from common import arguments, report

PEAK = """
import resource, runpy, sys
sys.argv = sys.argv[1:]
try:
    {work}
except SystemExit:
    pass
kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(kibibytes * (1 if sys.platform == "darwin" else 1024), file=sys.stderr)
"""
TRAIN = "runpy.run_module('mnist_ce', run_name='__main__', alter_sys=True)"


def peak_bytes(work: str, *words: str) -> int:
    """Return the peak resident memory of a fresh process."""
    command = [sys.executable, "-c", PEAK.format(work=work), *words]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(answer.stderr.splitlines()[-1])


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__)
    parser.add_argument("--epochs", type=int, default=2, help="the peak is reached in the first")
    options = parser.parse_args()
    imports, training = [], []
    for _ in range(options.repeats):
        imports.append(peak_bytes("import torch, torchvision"))
        with tempfile.TemporaryDirectory() as folder:
            words = ["mnist-ce", "train", "--dataset", "mnist", "--epochs", str(options.epochs)]
            words += ["--threads", str(options.threads), "--output", folder]
            training.append(peak_bytes(TRAIN, *words))
    base, peak = statistics.median(imports) / 1e6, statistics.median(training) / 1e6
    report(
        f"Peak resident memory, median of {options.repeats}",
        ["", "MB", "above the imports, MB"],
        [
            ("import torch, torchvision", f"{base:.0f}", ""),
            ("mnist-ce train, default recipe", f"{peak:.0f}", f"{peak - base:.0f}"),
        ],
        as_json=options.json,
    )


if __name__ == "__main__":
    main()
