"""Records and metrics that any program may have written: each command answers in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mnist_ce.cli import main
from mnist_ce.data.synthetic import generate

COMMANDS = [
    "runs",
    "runs --json",
    "train --resume a",
    "evaluate a",
    "evaluate a --verify",
    "calibrate a --with b",
]
MORE_COMMANDS = [
    "report a",
    "compare a mnist",
    "export a --file a.onnx",
    "predict x.png --checkpoint a/model.pt",
    "explain x.png --checkpoint a/model.pt",
    "train --init a --dry-run",
    "tune --seeds 0 --name a --set train.epochs=1",
]
ODD = ["\ud800", "\x1b[2J", "mnist", "folder:/x", "custom", "finished", "running", "../a", "1"]
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(ODD),
    lambda values: st.lists(values, max_size=10) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=10,
)


@pytest.fixture(scope="module")
def folder(two_runs: Path) -> Path:
    shutil.copytree(two_runs / "a", two_runs / "a.saved")
    Image.fromarray(255 - generate(1, seed=4).images.numpy()[0]).save(two_runs / "x.png")
    return two_runs


def change(record: dict[str, Any], data: st.DataObject) -> None:
    """Put any JSON in place of some values of a record, or of its config."""
    for _ in range(data.draw(st.integers(1, 3))):
        table, key = record, data.draw(st.sampled_from([*record, "error", "process", "prediction"]))
        while isinstance(table.get(key), dict) and table[key] and data.draw(st.booleans()):
            table = table[key]
            key = data.draw(st.sampled_from(list(table)))
        table[key] = data.draw(VALUES)
    record["format_version"] = 1


@pytest.mark.usefixtures("small_data")
@pytest.mark.parametrize(
    ("command", "num_records"),
    [
        *((command, 4) for command in COMMANDS),
        *(pytest.param(name, 60, marks=pytest.mark.slow) for name in COMMANDS + MORE_COMMANDS),
    ],
)
def test_any_record_gets_one_line(
    command: str,
    num_records: int,
    folder: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("NO_COLOR", "1")
    place = [] if command.startswith(("predict", "explain")) else ["--output", "."]

    @settings(max_examples=num_records, deadline=None)
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        shutil.rmtree("a")
        shutil.copytree("a.saved", "a")
        record = json.loads(Path("a/run.json").read_text())
        change(record, data)
        Path("a/run.json").write_text(json.dumps(record))
        metrics = bytearray(Path("a/metrics.csv").read_bytes())
        start = data.draw(st.integers(0, len(metrics)))
        metrics[start : start + 4] = data.draw(st.binary(max_size=9))
        Path("a/metrics.csv").write_bytes(metrics)
        exit_code = main([*command.split(), *place])
        out, err = capfd.readouterr()
        assert exit_code in (0, 1, 2)
        assert [line for line in (out + err).split("\n") if not line.isprintable()] == []
        num_errors = sum(line.startswith("error: ") for line in err.splitlines())
        assert num_errors == (exit_code != 0), err

    check()
