from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import pytest

from mnist_ce.cli import app, main

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
