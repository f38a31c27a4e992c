"""Parts shared by the benchmarks: data, interleaved timing, and tables as Markdown or JSON."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from mnist_ce.config import resolve_config
from mnist_ce.data.dataset import load_dataset
from mnist_ce.data.splits import Dataset, Split, split_validation

Name = TypeVar("Name")
Result = TypeVar("Result")
Format = Callable[[Any], str]


@cache
def mnist() -> Dataset:
    """Load MNIST from the folder that `MNIST_CE_DATA_DIR` names."""
    return load_dataset("mnist", Path(resolve_config().data.dir))


@cache
def held_out_split() -> tuple[Split, Split]:
    """Split MNIST's training images into 55,000 to fit on and 5,000 to measure on.

    The latter are the validation split of seed 0, so a network trained with
    `--set data.validation_size=5000` has not seen them.
    """
    return split_validation(mnist().train, 5_000, seed=0)


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the option of every benchmark."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    return parser


def timing_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options of every benchmark of speed."""
    parser = argument_parser(description)
    parser.add_argument("--repeats", type=int, default=7, help="rounds; medians are reported")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of torch")
    parser.add_argument("--busy", type=int, default=0, help="endless loops beside it, a core each")
    return parser


@contextlib.contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """Keep so many cores busy with other processes, which end on leaving."""
    command = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def interleaved(
    tasks: Mapping[Name, Callable[[], Result]], repeats: int
) -> dict[Name, list[Result]]:
    """Run the tasks in turn, A B C A B C …, so that drift of the machine affects all alike."""
    results: dict[Name, list[Result]] = {name: [] for name in tasks}
    for _ in range(repeats):
        for name, task in tasks.items():
            results[name].append(task())
    return results


def ratios(times: Sequence[float], reference: Sequence[float]) -> list[float]:
    """Return the ratio in each round."""
    return [one / other for one, other in zip(times, reference, strict=True)]


def median_range(digits: int) -> Format:
    """Format values as `median (min to max)`."""

    def text(values: Sequence[float]) -> str:
        low, middle, high = min(values), statistics.median(values), max(values)
        return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"

    return text


def mean_deviation(digits: int, factor: float = 1, unit: str = "") -> Format:
    """Format values as `mean ± standard deviation` (of the sample; left out for one value)."""

    def text(values: Sequence[float]) -> str:
        mean = f"{factor * statistics.fmean(values):.{digits}f}"
        if len(values) > 1:
            mean += f" ± {factor * statistics.stdev(values):.{digits}f}"
        return mean + unit

    return text


def percent(value: float) -> str:
    """Format a fraction."""
    return f"{value:.1%}"


def environment() -> dict[str, str]:
    """Return the date, versions, processor and system that a figure depends on."""
    found = {"date": date.today().isoformat(), "python": platform.python_version()}
    for package in ("torch", "torchvision", "numpy", "scikit-learn", "jax"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [s for s in cpuinfo.read_text().splitlines() if s.startswith("model name")]
        processor = models[0].partition(":")[2].strip() if models else processor
    cores = f"{len(os.sched_getaffinity(0))} cores"
    return found | {"processor": f"{processor}, {cores}", "system": platform.platform(terse=True)}


def print_table(
    title: str, columns: Mapping[str, Format], rows: Sequence[Sequence[Any]], *, as_json: bool
) -> None:
    """Print a table and its environment.

    Args:
        title: What was measured, with its conditions.
        columns: Heading and format of each column.
        rows: Raw values, which JSON keeps; None leaves a cell empty.
        as_json: JSON instead of Markdown.
    """
    if as_json:
        table = [dict(zip(columns, row, strict=True)) for row in rows]
        content = {"title": title, "rows": table, "environment": environment()}
        json.dump(content, sys.stdout, indent=2)
        print()
        return
    print(f"{title}\n\n| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    for row in rows:
        cells = zip(columns.values(), row, strict=True)
        texts = ["" if value is None else text(value) for text, value in cells]
        print(f"| {' | '.join(texts)} |")
    print("\n" + ", ".join(f"{key} {value}" for key, value in environment().items()))
