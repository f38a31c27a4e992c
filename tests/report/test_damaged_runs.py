"""Runs with anything in their files, through the commands that read them: one line each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree, rmtree
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mnist_ce.cli import main
from mnist_ce.report.plots.canvas import Canvas
from mnist_ce.training.trainer import TrainResult

COMMANDS = (
    *("report z", "report z a", "evaluate z --json", "evaluate z --verify --json"),
    *("evaluate z --split train", "evaluate z --split validation", "compare z a --json"),
    *("compare z a --split validation", "compare a z a", "calibrate z", "runs --json", "runs"),
)
FILES = st.just("run.json") | st.sampled_from(
    ["metrics.csv", "steps.csv", "config.toml", "model.pt", "best.pt", "resume.pt"]
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([-1, 0, 7, 10**30, 2**63, 0.5, -1.5, 1e308, float("nan"), float("inf")]),
    st.sampled_from(["", "\ud800", "a\x1b[31m\nb", "latest", "custom", "binary", "csv:/x", "cpu"]),
)
KEYS = st.sampled_from(["x", "\ud800", "model", "temperature"])
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=11) | st.dictionaries(KEYS, inner),
    max_leaves=6,
)
CUTS = st.sampled_from(
    [b"", b"nan", b"-1", b"9" * 40, b",", b"\n", b"\0", b"\xff", b"1e39", b"[x]\n"]
)


@pytest.fixture(scope="module")
def runs(
    train_small_in: Callable[..., TrainResult], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    train_small_in(folder, "a", data__validation_size=100, train__epochs=1)
    return folder


@pytest.fixture
def _undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Canvas, "png", lambda canvas: b"PNG")


def places(value: Any, *above: Any) -> list[tuple[Any, ...]]:
    """The paths of all values in a JSON document."""
    items = value.items() if isinstance(value, dict) else []
    return [above, *(place for key, item in items for place in places(item, *above, key))]


def damage(path: Path, data: st.DataObject) -> None:
    content = path.read_bytes()
    if path.name == "run.json" and data.draw(st.integers(0, 4)):
        record = json.loads(content)
        for _ in range(data.draw(st.integers(1, 3))):
            *above, key = data.draw(st.sampled_from(places(record)[1:]))
            table = record
            for name in above:
                table = table[name]
            table[key] = data.draw(VALUES)
            if not isinstance(table[key], dict):
                break
        content = json.dumps(record).encode()
    else:
        start = data.draw(st.integers(0, len(content)))
        content = (
            content[:start] + data.draw(CUTS) + content[start + data.draw(st.integers(0, 99)) :]
        )
    path.write_bytes(content)


@pytest.mark.slow
@pytest.mark.usefixtures("small_data", "_undrawn")
@given(data=st.data())
@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_content_of_a_runs_files_gives_one_line(
    runs: Path, capsys: pytest.CaptureFixture[str], data: st.DataObject
) -> None:
    rmtree(runs / "z", ignore_errors=True)
    run = copytree(runs / "a", runs / "z")
    for name in data.draw(st.lists(FILES, min_size=1, max_size=2, unique=True)):
        damage(run / name, data)
    command = data.draw(st.sampled_from(COMMANDS))
    capsys.readouterr()
    code = main([*command.split(), "--output", str(runs)])
    out, err = capsys.readouterr()
    assert code in (0, 1, 2)
    assert "Traceback" not in err
    assert "internal error" not in err
    assert sum(line.startswith("error: ") for line in err.splitlines()) == (code != 0)
    assert (out + err).replace("\n", "").isprintable()
    if "--json" in command and out:
        json.loads(out, parse_constant=pytest.fail)
