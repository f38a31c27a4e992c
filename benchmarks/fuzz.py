"""Spoil files at random and give them to every parser of the program, for as long as you like.

    python benchmarks/fuzz.py --seconds 600

A case fails where anything but the program's own errors comes out, where it takes more than 5 s of
processor time, or where the process comes to take more than 1 GB. What failed is kept in the folder
--keep.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

from mnist_ce.system.errors import MnistCeError

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from parsers import EDITS, INTERESTING, PARSERS, Edit, Parser

MAX_SECONDS = 5.0
MAX_BYTES = 1e9


def main() -> None:
    """Run the benchmark and print its counts as Markdown and as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    random_edits = random.Random(options.seed)
    counts = {name: {"cases": 0, "accepted": 0, "refused": 0, "failed": 0} for name in PARSERS}
    slowest = dict.fromkeys(PARSERS, 0.0)
    end = time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        while time.monotonic() < end:
            for name, target in PARSERS.items():
                content = spoiled(target, random_edits)
                began = time.process_time()
                outcome = tried(target, Path(folder), content)
                seconds = time.process_time() - began
                if seconds > MAX_SECONDS or peak_bytes() > MAX_BYTES:
                    outcome = "failed"
                    print(f"{name}: {seconds:.1f} s, {peak_bytes():,.0f} bytes", file=sys.stderr)
                counts[name]["cases"] += 1
                counts[name][outcome] += 1
                slowest[name] = max(slowest[name], seconds)
                if outcome == "failed":
                    options.keep.mkdir(exist_ok=True)
                    number = counts[name]["failed"]
                    (options.keep / f"{name.replace(chr(39), '')}-{number}").write_bytes(content)
    print("| parser | cases | accepted | refused | failed | slowest |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, count in counts.items():
        cells = " | ".join(str(value) for value in count.values())
        print(f"| {name} | {cells} | {slowest[name]:.2f} s |")
    print(json.dumps({"peak_bytes": peak_bytes(), "counts": counts, "slowest": slowest}, indent=2))
    sys.exit(any(count["failed"] for count in counts.values()))


def spoiled(target: Parser, choices: random.Random) -> bytes:
    """Return a good file with a few random changes."""
    content = choices.choice(target.seeds)
    for _ in range(choices.randint(1, 4)):
        some = choices.choice([choices.randbytes(choices.randint(1, 8)), *INTERESTING])
        kind, place = choices.choice(EDITS), choices.random()
        content = Edit(kind, place, choices.randint(1, 64), some).apply(content)
    return content


def tried(target: Parser, folder: Path, content: bytes) -> str:
    """Return whether a parser accepts a file, refuses it, or fails."""
    try:
        target.parse(folder, content)
    except MnistCeError:
        return "refused"
    except BaseException:
        print(f"{target.name}:", file=sys.stderr)
        traceback.print_exc()
        return "failed"
    return "accepted"


def peak_bytes() -> float:
    """Return the most memory that this process has taken."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


if __name__ == "__main__":
    main()
