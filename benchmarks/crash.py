"""Kill a training run at random moments, continue it until it is done, and compare the weights.

    python benchmarks/crash.py --kills 50

trains once undisturbed. Then it starts the same run again and sends SIGKILL after a random time,
continues it with --resume, kills it again, and so on, through one run after the other; every second
kill waits for a file that is just being written. After each kill all files of the run are read, and
a copy of it is continued to its end, whose weights must be those of the undisturbed run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from mnist_ce.runs.checkpoint import load_state_dict, load_tensors
from mnist_ce.runs.run_dir import RunDir
from mnist_ce.training.training import train


def main() -> None:
    """Run the benchmark and print its result as Markdown and as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("arguments", nargs="*", help="more arguments of `mnist-ce train`")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="crash-") as folder:
        result = kill_and_compare(Path(folder), options)
    print("| kills | while a file was written | runs | ended equal | unreadable files |")
    print("| --- | --- | --- | --- | --- |")
    print(
        f"| {result['kills']} | {result['kills_in_writes']} | {result['runs']} "
        f"| {result['equal']} of {result['kills']} | {result['unreadable']} |"
    )
    print(json.dumps(result, indent=2))
    sys.exit(result["equal"] != result["kills"] or result["unreadable"] != 0)


def kill_and_compare(output: Path, options: argparse.Namespace) -> dict[str, object]:
    """Return the counts."""
    base = [sys.executable, "-m", "mnist_ce", "train", "-q", "--output", str(output)]
    settings = ["run.plots=false", "run.save_every_seconds=0.05", "average.decay=0.99"]
    begin = [*base, "--epochs", str(options.epochs), *options.arguments]
    begin += [part for setting in settings for part in ("--set", setting)]
    began = time.perf_counter()
    subprocess.run([*begin, "--name", "undisturbed"], check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - began
    record = RunDir(output / "undisturbed").read_record() or {}
    expected, train_seconds = record["weights_sha256"], record["train_seconds"]

    moments = random.Random(options.seed)
    kills = kills_in_writes = runs = equal = unreadable = 0
    while kills < options.kills:
        run = RunDir(output / f"run-{runs}")
        again = [*base, "--resume", run.name]
        command = again if run.path.exists() else [*begin, "--name", run.name]
        in_write = False
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        if wait_for_training(process, run):
            in_write = wait(process, run, moments.uniform(0, train_seconds), kills % 2 == 1)
        process.kill()
        _, errors = process.communicate()
        if process.returncode > 0:
            raise SystemExit(f"{' '.join(command)} failed: {errors.decode()}")
        if process.returncode == 0:
            runs += 1
        else:
            kills += 1
            kills_in_writes += in_write
            unreadable += num_unreadable(run)
            found = finished_copy(run, output / "copy")
            equal += found == expected
            print(f"kill {kills}: {'equal' if found == expected else found}", file=sys.stderr)
    return {
        "kills": kills,
        "kills_in_writes": kills_in_writes,
        "runs": runs + 1,
        "equal": equal,
        "unreadable": unreadable,
        "undisturbed_seconds": round(seconds, 1),
        "weights_sha256": expected,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def finished_copy(run: RunDir, path: Path) -> str:
    """Continue a copy of a run to its end; return the digest of its weights."""
    shutil.copytree(run.path, path)
    try:
        return str(train(resume=str(path)).record["weights_sha256"])
    finally:
        shutil.rmtree(path)


def wait_for_training(process: subprocess.Popen[bytes], run: RunDir) -> bool:
    """Wait until a process has taken up a run, as its record then says; return whether it has."""
    while process.poll() is None:
        record = run.read_record() or {}
        if record.get("process", {}).get("id") == process.pid:
            return True
        time.sleep(0.005)
    return False


def wait(process: subprocess.Popen[bytes], run: RunDir, seconds: float, until_write: bool) -> bool:
    """Wait so long, and then perhaps for a write to begin; return whether one goes on."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        end = time.monotonic() + 5
        while until_write and time.monotonic() < end and process.poll() is None:
            if any(run.path.glob(".*.tmp")):
                return True
    return False


def num_unreadable(run: RunDir) -> int:
    """Read all that a killed run left; return how many files are not whole."""
    damaged = 0
    readers = {
        run.model_path: lambda: load_state_dict(run.model_path),
        run.resume_path: lambda: load_tensors(run.resume_path),
        run.record_path: run.read_record,
        run.metrics_path: run.read_metrics,
    }
    for path, read in readers.items():
        if path.exists():
            try:
                read()
            except Exception as error:
                print(f"{path}: {error}", file=sys.stderr)
                damaged += 1
    return damaged


if __name__ == "__main__":
    main()
