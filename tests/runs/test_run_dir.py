from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mnist_ce.config import Config
from mnist_ce.runs.run_dir import create_run
from mnist_ce.system.errors import UsageError
from mnist_ce.training.trainer import train


def test_of_two_that_want_a_name_one_gets_it(
    small_settings: dict[str, Any], tmp_path: Path
) -> None:
    create_run(tmp_path, "a", "", lambda run, name: run.write_config(Config()))
    with pytest.raises(UsageError, match=r"a exists and is never overwritten"):
        train(None, small_settings | {"run.name": "a"})
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_names_made_at_the_same_moment_differ(
    small_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.strftime", lambda form: "20260101-000000")
    names = [train(None, small_settings | {"train.epochs": 1}).run.name for _ in range(2)]
    assert names == [f"synthetic-default-20260101-000000{end}" for end in ("", "-2")]
