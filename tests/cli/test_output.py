"""What any command prints: no control characters, in any encoding, whole; and how it is stopped."""

from __future__ import annotations

import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from mnist_ce.cli import app, main
from mnist_ce.data.synthetic import generate
from mnist_ce.network.model import MLP

CONTROL = "\x1b[31m\x9b2J\x07\u202eé"  # colour, clear, bell, right to left
COMMANDS = [str(command.name) for command in app.registered_commands]


@pytest.fixture(scope="module")
def folder(two_runs: Path) -> Path:
    """A folder of two runs, one of them with control characters in its record, and an image."""
    folder = two_runs
    path = folder / "b" / "run.json"
    record = json.loads(path.read_text())
    texts = ("name", "recipe", "host", "process", "command", "git_commit")
    record |= {key: f"{CONTROL}{key}" for key in texts}
    record["class_names"] = [f"{CONTROL}{name}" for name in record["class_names"]]
    path.write_text(json.dumps(record))
    state = MLP([8], 10).state_dict()
    torch.save({f"{CONTROL}{key}": tensor for key, tensor in state.items()}, folder / "keys.pt")
    torch.save({f"{CONTROL}w": torch.zeros(3)}, folder / "wrong.pt")
    (folder / "name.toml").write_text(f"[run]\nname = {json.dumps(CONTROL)}\n")
    image = Image.fromarray(255 - generate(1, seed=4).images.numpy()[0]).resize((99, 99))
    image.save(folder / f"{CONTROL}.png")
    (folder / f"{CONTROL}.txt").write_text("no image")
    return folder


@pytest.mark.parametrize(
    "command",
    [
        "runs",
        "runs --json",
        "runs --delete b\x1b",
        "evaluate b",
        "evaluate b --json",
        "evaluate b --verify",
        "evaluate keys.pt",
        "evaluate wrong.pt",
        "compare a b",
        "predict IMAGE --checkpoint b/model.pt",
        "predict IMAGE --checkpoint b/model.pt --json",
        "predict IMAGE TEXT missing\x1b.png --csv",
        "explain IMAGE --checkpoint b/model.pt",
        "explain --logits \x1b,2 --target \x1b",
        "train -c name.toml --show-config",
        "train -c name.toml --dataset folder:x",
        "train --set \x1b=\x1b",
        "train \x1b --epochs=\x1b",
        "train --dataset folder:\x1b",
        "train --dataset mnist --data-dir \x1b --mirror \x1b",
        "train --resume b\x1b",
        "tune --name \x1b",
        "calibrate b\x1b",
        "report b\x1b",
        "--traceback evaluate \x1b",
        "\x1b",
    ],
)
def test_nothing_printed_controls_the_terminal(
    command: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("NO_COLOR", "1")
    names = {"IMAGE": f"{CONTROL}.png", "TEXT": f"{CONTROL}.txt"}
    words = [names.get(word, word) for word in command.split(" ")]
    if words[0] in ("runs", "evaluate", "compare"):
        words += ["--output", "."]
        request.getfixturevalue("small_data")
    assert main(words) in (0, 1, 2)
    out, err = capfd.readouterr()
    assert out + err
    assert [line for line in (out + err).split("\n") if not line.isprintable()] == []


@pytest.mark.usefixtures("small_data")
@pytest.mark.parametrize("encoding", ["cp437", "ascii"])
def test_results_are_printed_in_any_encoding(
    encoding: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = [*(f"{command} --help" for command in COMMANDS), "runs --output .", "runs --json"]
    commands += ["calibrate a --output .", "predict *.png --checkpoint b/model.pt --json"]
    monkeypatch.chdir(folder)
    for command in commands:
        printed = io.BytesIO()
        with io.TextIOWrapper(printed, encoding=encoding, write_through=True) as stdout:
            monkeypatch.setattr(sys, "stdout", stdout)
            assert main(shlex.split(command)) == 0, command
            text = printed.getvalue().decode(encoding)
        if "--json" in command:
            json.loads(text)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs a process group")
@pytest.mark.parametrize("seconds", [1, 3, 6])
@pytest.mark.parametrize(
    "command",
    [
        "train --dataset synthetic --epochs 99",
        "tune --dataset synthetic --config fast --seeds 0-9 --jobs 2",
        "evaluate world --dataset synthetic",
        "compare world mnist --dataset synthetic",
        "predict images",
        "export world --dataset synthetic",
        "demo --no-browser --port 0",
    ],
)
def test_ctrl_c_ends_a_command_soon(command: str, seconds: float, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.effect_noise((900, 900), 50).save(tmp_path / "images" / "0.png")
    for number in range(1, 300):
        os.link(tmp_path / "images" / "0.png", tmp_path / "images" / f"{number}.png")
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    process = subprocess.Popen(
        [sys.executable, "-m", "mnist_ce", *command.split()],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    time.sleep(seconds)
    has_ended = process.poll() is not None
    began_at = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to all processes of the command
    _, err = process.communicate(timeout=30)
    assert time.monotonic() - began_at < 4  # 2 on an idle machine
    # Python ends itself by the signal where code made at run time was interrupted.
    assert has_ended or process.returncode in (130, -signal.SIGINT)
    assert b"Traceback" not in err
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # no process is left


@pytest.mark.skipif(os.name != "posix", reason="needs a shell and /dev/full")
@pytest.mark.parametrize(
    ("redirection", "exit_code", "error"),
    [
        (">&-", 0, ""),
        (">/dev/full", 1, "error: No space left on device\n"),
        ("2>&- >&-", 0, ""),
        ("| true; exit ${PIPESTATUS[0]}", 1, ""),
    ],
)
def test_a_stdout_that_takes_nothing(
    redirection: str, exit_code: int, error: str, tmp_path: Path
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), "NO_COLOR": "1"}
    command = f"sleep 0.1; {shlex.quote(sys.executable)} -m mnist_ce runs --json {redirection}"
    shell = ["bash", "-c", command]
    done = subprocess.run(shell, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (exit_code, "", error)


def test_the_list_of_commands_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "…" not in text
    assert "..." not in text.partition("Commands:")[2]
    assert all(f"\n  {command} " in text for command in COMMANDS)
