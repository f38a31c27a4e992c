from __future__ import annotations

import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from mnist_ce.cli import app, main
from mnist_ce.cli.printing import note, printing

Capsys = pytest.CaptureFixture[str]


@pytest.mark.parametrize("command", [c.name for c in app.registered_commands])
def test_every_command_takes_traceback(command: str, capsys: Capsys) -> None:
    assert main([command, "--help"]) == 0
    assert capsys.readouterr().out.count("--traceback") == 1


@pytest.mark.parametrize(
    "arguments", ["--traceback runs --output {}", "runs --output {} --traceback"]
)
def test_traceback_is_for_one_call(
    arguments: str, tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail = Mock(side_effect=PermissionError(13, "Permission denied", tmp_path))
    monkeypatch.setattr("mnist_ce.runs.run_dir.list_runs", fail)
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(arguments.replace("{}", str(tmp_path)).split()) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    assert lines[-1] == f"error: {tmp_path}: Permission denied"
    assert main(["runs", "--output", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path}: Permission denied\n"


def test_an_os_error_that_is_not_from_the_system_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    fail = Mock(side_effect=OSError("wrong arguments"))
    monkeypatch.setattr("mnist_ce.runs.run_dir.list_runs", fail)
    with pytest.raises(OSError, match="wrong arguments"):
        main(["runs"])


def test_the_versions(capsys: Capsys) -> None:
    assert main(["--version"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [name for name, _ in lines] == ["mnist-ce", "torch", "torchvision", "Python"]
    assert all(version[0].isdigit() for _, version in lines)


def test_a_terminal_says_that_torch_is_loading(
    capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with printing():
        assert sys.meta_path[0].find_spec("torch", None) is None
        assert capsys.readouterr().err == "loading torch …"
        note("a line")
    lines = capsys.readouterr().err
    assert lines == f"\r{' ' * 15}\ra line\n"
