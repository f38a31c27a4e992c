from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from mnist_ce.cli import main
from mnist_ce.config import Config, resolve_config, shipped_configs


def shown_config(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    assert main(["train", "--show-config", *flags]) == 0
    return capsys.readouterr().out


def test_show_config_prints_the_resolved_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--epochs", "3", "--set", "data.classes=[3, 7]", "--name", 'a "b"']
    text = shown_config(capsys, *flags)
    (tmp_path / "shown.toml").write_text(text)
    settings = {"train.epochs": 3, "data.classes": [3, 7], "run.name": 'a "b"'}
    assert resolve_config(tmp_path / "shown.toml") == resolve_config(flags=settings)


def test_show_config_explains_every_key_and_names_every_recipe(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = shown_config(capsys)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    for section, table in tomllib.loads(text).items():
        place = lines.index(f"[{section}]")
        assert lines[place - 1].startswith("# ")
        for key in table:
            place = next(n for n in range(place, len(lines)) if lines[n].startswith(f"{key} = "))
            assert lines[place - 1].startswith("# "), key
    for name in shipped_configs():
        assert f"# {name} " in text
    assert set(tomllib.loads(text)) == set(Config.model_fields)


def test_show_config_refuses_what_training_would(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--show-config", "--set", "train.epoch=3"]) == 2
    assert "did you mean train.epochs?" in capsys.readouterr().err
    assert main(["train", "--show-config", "--resume", "latest"]) == 2
