"""Files of a run that any program may have written: one line, and no traceback."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
from hypothesis import given

from mnist_ce.cli import main
from mnist_ce.config import Config
from mnist_ce.runs.records import RunRecord
from mnist_ce.training.trainer import TrainResult

TEXTS = st.text(max_size=9) | st.sampled_from(["\x1b[31mred", "\ud800", "\u202e", "a" * 999, "\n"])
NUMBERS = st.integers(-(10**400), 10**400) | st.integers(-3, 300) | st.floats()
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)
RECORDS = st.dictionaries(st.sampled_from([*RunRecord.model_fields, "tune"]), VALUES, max_size=4)
CONFIGS = st.dictionaries(st.sampled_from([*Config().flat(), "x.y"]), VALUES, max_size=4)
PREDICTIONS = st.fixed_dictionaries({"temperature": NUMBERS, "rejection_threshold": NUMBERS})
CELLS = st.sampled_from(
    ["nan", "inf", "-1", "1e400", "9" * 400, "9" * 5000, "", "x", "\0", '"', "3"]
)
TABLES = st.lists(st.tuples(st.integers(0, 99), CELLS), max_size=2)


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, train_small_in: Callable[..., TrainResult]
) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for name in "ab":
        train_small_in(folder, name, data__validation_size=100)
    return folder


def with_cells(path: Path, cells: list[tuple[int, str]]) -> None:
    parts = path.read_text().replace("\n", ",\n,").split(",")
    for place, text in cells:
        parts[place % len(parts)] = text
    path.write_text(",".join(parts).replace(",\n,", "\n"))


@pytest.mark.usefixtures("small_data")
@pytest.mark.parametrize(
    ("command", "num_examples"),
    [
        ("runs", 20),
        ("runs --json", 20),
        ("evaluate {a}", 5),
        *(
            pytest.param(command, 15, marks=pytest.mark.slow)
            for command in (
                "evaluate {a} --verify --json",
                "evaluate {a} --split validation",
                "compare {a} {b}",
                "calibrate {a} --with {b}",
                "train --resume {a}",
                "report {a} {b}",
            )
        ),
    ],
)
def test_a_record_of_any_content_is_read_or_refused_in_one_line(
    command: str,
    num_examples: int,
    runs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    a, b = tmp_path / "a", tmp_path / "b"

    @hypothesis.settings(max_examples=num_examples, deadline=None, derandomize=True, database=None)
    @given(RECORDS, CONFIGS, st.none() | PREDICTIONS, TABLES, TABLES)
    def check(
        changes: dict[str, Any],
        config: dict[str, Any],
        prediction: dict[str, Any] | None,
        epochs: list[tuple[int, str]],
        steps: list[tuple[int, str]],
    ) -> None:
        shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
        record = json.loads((a / "run.json").read_text())
        for key, value in config.items():
            section, _, name = key.partition(".")
            record["config"].setdefault(section, {})[name] = value
        record |= {"prediction": prediction} if prediction else {}
        (a / "run.json").write_text(json.dumps(record | changes))
        with_cells(a / "metrics.csv", epochs)
        with_cells(a / "steps.csv", steps)
        arguments = [word.format(a=a, b=b) for word in command.split()]
        code = main([*arguments, "--output", str(tmp_path)])
        printed = capsys.readouterr()
        lines = (printed.out + printed.err).splitlines()
        assert code in (0, 1, 2)
        assert sum(line.startswith("error: ") for line in lines) == (code != 0)
        assert all(line.isprintable() for line in lines)

    check()


@pytest.mark.parametrize("name", ["run.json", "metrics.csv", "steps.csv", ".lock", "config.toml"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "large"])
def test_only_regular_files_of_some_size_are_opened(
    name: str, kind: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shutil.copytree(runs / "a", tmp_path / "a") / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        with path.open("wb") as file:
            file.truncate(1 << 40)
    for arguments in (
        ["runs"],
        ["evaluate", str(path.parent), "--verify"],
        ["train", "--resume", "a"],
    ):
        assert main([*arguments, "--output", str(tmp_path)]) in (0, 1, 2)
        assert "Traceback" not in capsys.readouterr().err
