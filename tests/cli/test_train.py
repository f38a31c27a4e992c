from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path

import pytest

from mnist_ce.cli import main
from mnist_ce.config import Config, resolve_config, shipped_configs

Capsys = pytest.CaptureFixture[str]
pytestmark = pytest.mark.usefixtures("small_data")


def test_dry_run_leaves_nothing(tmp_path: Path, capsys: Capsys) -> None:
    words = ["--dry-run", "--output", str(tmp_path), "--set", "model.hidden=[40]"]
    assert main(["train", *words]) == 0
    assert not list(tmp_path.iterdir())
    told = capsys.readouterr()
    assert "dry run" in told.out
    assert "guessing" not in told.err  # of one batch that says nothing


def test_json_is_all_of_stdout(tmp_path: Path, capsys: Capsys) -> None:
    words = ["--output", str(tmp_path), "--epochs", "1", "--set", "model.hidden=[40]", "--name"]
    assert main(["train", *words, "one", "--json", "--set", "run.plots=false"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["name"] == "one"
    assert "epoch 1/1" in told.err
    assert main(["train", *words, "one"]) == 2
    assert "exists and is never overwritten" in capsys.readouterr().err

    assert main(["evaluate", "one", "--output", str(tmp_path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["total"] == sum(map(sum, report["confusion_matrix"])) == 1_000
    assert report["correct"] == sum(row[n] for n, row in enumerate(report["confusion_matrix"]))
    low, high = report["accuracy_interval"]
    assert low < report["accuracy"] < high


def shown_config(capsys: Capsys, *flags: str) -> str:
    assert main(["train", "--show-config", *flags]) == 0
    return capsys.readouterr().out


def test_show_config_prints_the_resolved_config(tmp_path: Path, capsys: Capsys) -> None:
    flags = ["--epochs", "3", "--set", "data.classes=[3, 7]", "--name", 'a "b"']
    (tmp_path / "shown.toml").write_text(shown_config(capsys, *flags))
    settings = {"train.epochs": 3, "data.classes": [3, 7], "run.name": 'a "b"'}
    assert resolve_config(tmp_path / "shown.toml") == resolve_config(flags=settings)


def test_show_config_explains_every_key_and_names_every_recipe(capsys: Capsys) -> None:
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


def test_a_diverging_run_says_how_to_go_on(tmp_path: Path, capsys: Capsys) -> None:
    words = ["train", "--output", str(tmp_path), "--set", "model.hidden=8", "--lr", "1e30"]
    for more in ([], ["--dry-run"]):  # of one batch, so that only the test loss is not finite
        assert main([*words, *more]) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert "Start a new run with a learning rate below 1e+30, such as 1e+29" in error


def test_the_help_shows_the_defaults_and_the_recipes(capsys: Capsys) -> None:
    assert main(["train", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for shown in ("[default: 9]", "[default: 0.01]", f"{', '.join(shipped_configs())}."):
        assert shown in text


SMALL = ["--epochs", "2", "--set", "model.hidden=[40]", "--name"]


def test_train_ends_with_what_was_reached_and_what_comes_next(
    tmp_path: Path, capsys: Capsys
) -> None:
    output = ["--output", str(tmp_path)]
    assert main(["train", *SMALL, "a b", *output]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert len(lines) == 2
    assert re.fullmatch(r"\d\d\.\d\d % of 1,000 test images correct \(95 % interval .*\)", lines[0])
    assert lines[1].startswith("mnist, recipe default, 2 epochs in ")
    assert "network 784→40→10, 31,810 parameters" in printed.err
    assert printed.err.count("test loss of its end)") <= 1
    assert "57 % after its first epoch" not in printed.err  # as it is no longer that recipe
    assert "curves.png" in printed.err
    run = f"'{tmp_path / 'a b'}'"
    commands = ("report", "evaluate", "predict examples/seven.jpg --checkpoint")
    expected = [f"  mnist-ce {command} {run}" for command in commands]
    assert printed.err.splitlines()[-3:] == expected
    flags = ["-q", "--set", "data.validation_size=50", "--set", "run.plots=false"]
    assert main(["train", *SMALL, "quiet", *output, *flags]) == 0
    printed = capsys.readouterr()
    assert re.search(r"^best epoch \d: \d\d\.\d\d % of the validation split", printed.out, re.M)
    assert printed.err == f"kept in {tmp_path / 'quiet'}\n"


def test_the_bar_is_of_the_whole_run(
    tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    flags = ["--set", "run.log_interval=1", "--set", "run.plots=false", "--output", str(tmp_path)]
    assert main(["train", *SMALL, "a", *flags]) == 0
    bars = [text for text in re.split(r"[\r\n]", capsys.readouterr().err) if "left" in text]
    form = r"epoch \d/2 \|.{8,10}\| loss \d\.\d{4}  accuracy [ \d]{0,2}\d\.\d\d %  [\d:?]+ left"
    shown = [text for text in bars if not text.startswith(" ") and "|" in text]
    assert shown
    assert all(re.fullmatch(form, text.rstrip()) for text in shown)
