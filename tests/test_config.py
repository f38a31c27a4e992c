from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from mnist_ce.cli import main
from mnist_ce.config import Config, parse_assignments, resolve_config
from mnist_ce.evaluation.verification import verify
from mnist_ce.runs.run_dir import RunDir
from mnist_ce.system.errors import UsageError
from mnist_ce.training.trainer import train


def test_a_flat_config_has_every_key() -> None:
    flat = Config().flat()
    assert flat["train.epochs"] == 9
    assert flat["model.hidden"] == [520, 320, 240, 120]
    assert len(flat) == sum(map(len, Config().to_dict().values()))
    assert resolve_config(flags=flat, environment={}) == Config()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_config_of_any_editor_and_of_an_older_version_is_read(
    encoding: str, tmp_path: Path
) -> None:
    (tmp_path / "a.toml").write_text('train = { step = "cuda-graph" }', encoding=encoding)
    assert resolve_config(str(tmp_path / "a.toml"), environment={}).train.step == "plain"


def test_a_renamed_key_is_valid_with_one_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    (tmp_path / "old.toml").write_text("[augment]\nflagged_ones = 0.5\n")
    options = ["--config", str(tmp_path / "old.toml"), "--set", "augment.flagged_ones=0.3"]
    assert main(["train", "--show-config", *options]) == 0
    shown = capsys.readouterr()
    assert tomllib.loads(shown.out)["data"]["upstrokes"] == 0.3
    assert shown.err == "warning: augment.flagged_ones is now called data.upstrokes\n"


def test_a_run_of_an_older_version_can_be_resumed_and_verified(
    small_settings: dict[str, Any], tmp_path: Path
) -> None:
    def mismatches() -> list[str]:
        _, checks = verify("old", output=tmp_path, data_dir=small_settings["data.dir"])
        return [check.name for check in checks if not check.ok]

    old = {"data.drawn": 30, "augment.flagged_ones": 0.5, "augment.photographed": 0.1}
    train(None, {**small_settings, "run.name": "old"} | old)
    run = RunDir(tmp_path / "old")
    new = {"num_synthetic": ("data", "drawn"), "upstrokes": ("augment", "flagged_ones")}
    new["thin_copies"] = ("augment", "photographed")
    record = json.loads(run.record_path.read_text())
    for key, (section, old_key) in new.items():
        record["config"][section][old_key] = record["config"]["data"].pop(key)
    run.record_path.write_text(json.dumps(record))
    run.config_path.write_text(tomli_w.dumps(record["config"]))
    assert mismatches() == []

    train(None, {"train.epochs": 3, "run.output": str(tmp_path)}, resume="old")
    record = json.loads(run.record_path.read_text())
    assert record["epochs_done"] == 3
    assert [record["config"]["data"][key] for key in new] == [30, 0.5, 0.1]
    assert not {"flagged_ones", "photographed"} & record["config"]["augment"].keys()
    assert mismatches() == []


def test_values_are_read_as_a_person_writes_them() -> None:
    texts = {
        "model.hidden=100,50": [100, 50],
        "model.hidden=(100 50)": [100, 50],
        "model.hidden=100": [100],
        "data.classes=[3, 8]": [3, 8],
        "data.classes=": [],
        "optimizer.nesterov=True": True,
        "run.plots=off": False,
        "optimizer.learning_rate=.01": 0.01,
        "optimizer.learning_rate=1": 1,
        "run.name=2024": "2024",
        'run.name="a b"': "a b",
    }
    for text, value in texts.items():
        parsed = parse_assignments([text])
        assert parsed == {text.partition("=")[0]: value}
        resolve_config(flags=parsed, environment={})


@pytest.mark.parametrize("value", ["a\x1b[31m", "a\0b", "line\nbreak", "\x9b2J"])
def test_a_text_has_no_control_characters(value: str) -> None:
    for key in ("run.name", "data.dataset", "data.dir", "data.mirror"):
        text = f"csv:{value}" if key == "data.dataset" else value
        with pytest.raises(UsageError, match=f"^{key} = .*: must "):
            resolve_config(flags={key: text}, environment={})
    assert resolve_config(flags={"data.dir": "a\u202fb"}, environment={}).data.dir == "a\u202fb"
