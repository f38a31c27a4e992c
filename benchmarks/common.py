"""What the benchmarks share: interleaved timing, and tables as Markdown and JSON."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["arguments", "command_seconds", "interleaved", "ratios", "report", "versions"]


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with what every benchmark takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--repeats", type=int, default=7, help="rounds; medians are reported")
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of torch")
    return parser


def interleaved(tasks: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Run each task in turn, A B C A B C …, so that a drift of the machine hits all alike.

    Args:
        tasks: By name, what returns a time in seconds.
        repeats: How many rounds.
    """
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(repeats):
        for name, task in tasks.items():
            times[name].append(task())
    return times


def ratios(times: Sequence[float], reference: Sequence[float]) -> list[float]:
    """Return the ratio in each round."""
    return [one / other for one, other in zip(times, reference, strict=True)]


def spread(values: Sequence[float], digits: int) -> str:
    """Return `median (min to max)`."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def command_seconds(command: Sequence[str]) -> float:
    """Return the wall time of a whole process, whose output is thrown away."""
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def versions() -> dict[str, str]:
    """Return what a figure depends on."""
    found = {"date": date.today().isoformat(), "python": platform.python_version()}
    for package in ("torch", "torchvision", "numpy", "scikit-learn", "jax"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found | {"processor": processor(), "system": platform.platform(terse=True)}


def processor() -> str:
    """Return the processor's name and how many cores may be used."""
    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    import os

    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def report(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, as_json: bool
) -> None:
    """Print one table, with what it was measured on."""
    if as_json:
        table = [dict(zip(columns, row, strict=True)) for row in rows]
        json.dump({"title": title, "rows": table, "versions": versions()}, sys.stdout, indent=2)
        print()
        return
    print(f"{title}\n")
    print("| " + " | ".join(columns) + " |")
    print("|" + " --- |" * len(columns))
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |")
    print("\n" + ", ".join(f"{key} {value}" for key, value in versions().items()))
