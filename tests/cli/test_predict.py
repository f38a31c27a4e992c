"""`mnist-ce predict`: formats, sources, exit codes."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mnist_ce.cli import main
from mnist_ce.data.synthetic.generate import generate
from mnist_ce.network.model import MLP

NAMES = ("plain.png", "two words.png", "line\nbreak.png", "Ünïcode 数字.png", 'quote",comma.png')


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of pictures with difficult names, a broken one, and a network."""
    for name, image in zip(NAMES, generate(5, seed=4).images.numpy(), strict=True):
        Image.fromarray(image).save(tmp_path / name)
    (tmp_path / "zz broken.png").write_text("no picture")
    torch.manual_seed(0)
    torch.save(MLP([8], 10).state_dict(), tmp_path / "net.pt")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> int:
    return main(["predict", "--checkpoint", "net.pt", *arguments])


@pytest.mark.usefixtures("folder")
def test_json_jsonl_and_csv_hold_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(".", "--json") == 1
    captured = capsys.readouterr()
    records = json.loads(captured.out)
    assert sorted(r["path"] for r in records) == sorted((*NAMES, "zz broken.png"))
    assert [r["status"] for r in records].count("error") == 1
    assert captured.err.count("zz broken.png") == 1

    assert run(".", "--jsonl") == 1
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == records

    assert run(".", "--csv") == 1
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert list(rows[0]) == [
        "path", "index", "label", "class_name", "probability", "top_k", "status", "reason",
    ]  # fmt: skip
    for row, record in zip(rows, records, strict=True):
        assert row["path"] == record["path"]
        assert row["label"] == ("" if record["label"] is None else str(record["label"]))
        if record["label"] is not None:
            assert float(row["probability"]) == record["probability"]
            assert len(row["top_k"].split()) == 3


@pytest.mark.usefixtures("folder")
def test_the_environment_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    before = dict(os.environ)
    assert run("plain.png") == 0
    assert dict(os.environ) == before


@pytest.mark.usefixtures("folder")
def test_people_get_a_line_per_picture(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plain.png", "line\nbreak.png", "--top-k", "1") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert "plain.png" in lines[0]
    assert "%" in lines[0]
    assert "line\\nbreak.png" in lines[1]


@pytest.mark.usefixtures("folder")
def test_an_unexpanded_pattern(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("*o*.png", "--jsonl", "--min-confidence", "0") == 1  # the broken one
    paths = [json.loads(line)["path"] for line in capsys.readouterr().out.splitlines()]
    assert paths == ['quote",comma.png', "two words.png", "zz broken.png", "Ünïcode 数字.png"]


@pytest.mark.usefixtures("folder")
def test_nothing_found_is_an_answer_not_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("L", (80, 80), 255).save("blank.png")
    assert run("blank.png", "--json") == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert (record["status"], record["reason"]) == ("rejected", "no ink found")


def test_a_broken_folder_gives_an_empty_array_only_where_it_is_empty(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "empty").mkdir()
    assert run("empty", "--json") == 1
    (record,) = json.loads(capsys.readouterr().out)
    assert record["status"] == "error"


@pytest.mark.usefixtures("folder")
def test_formats_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plain.png", "--json", "--csv") == 2
    assert "choose one" in capsys.readouterr().err


def test_what_the_network_saw_and_every_stage_are_written(folder: Path) -> None:
    image = generate(5, seed=4).images.numpy()[0]
    Image.fromarray(255 - image).resize((200, 200)).save("large.png")
    assert run("plain.png", "large.png", "--save-inputs", "seen", "--stages", "strips") == 0
    seen = sorted(path.name for path in (folder / "seen").iterdir())
    assert seen == ["00001-plain-0.png", "00002-large-0.png"]
    with Image.open(folder / "seen" / seen[0]) as saved:
        np.testing.assert_array_equal(np.asarray(saved), image)
    assert len(list((folder / "strips").iterdir())) == 2
    assert run("large.png", "--stages", "one.png") == 0
    with Image.open("one.png") as strip:
        assert strip.width > 500


def test_a_picture_without_ink_has_stages_too(folder: Path) -> None:
    Image.new("L", (80, 80), 255).save("blank.png")
    assert run("blank.png", "--stages", "one.png") == 0
    assert (folder / "one.png").is_file()


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("option", ["--save-inputs", "--stages"])
def test_a_file_where_a_folder_should_be(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plain.png", "two words.png", option, "net.pt") == 1
    captured = capsys.readouterr()
    assert f"{option} net.pt: no such folder can be made" in captured.err
    assert captured.out == ""


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("names", [["plain.png", "strip.jpg"], ["*o*.png", "strip.png"]])
def test_a_strip_is_a_png_of_one_picture(
    names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    pictures, strip = names
    assert run(pictures, "--stages", strip) == 2
    assert f"--stages {strip}: name a folder" in capsys.readouterr().err


def test_the_longest_names(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    longest = f"{'数' * 83}nn.png"  # 255 bytes
    (folder / longest).write_bytes((folder / "plain.png").read_bytes())
    too_long = f"{'n' * 300}.png"
    arguments = (longest, too_long, "plain.png", "--json")
    assert run(*arguments, "--save-inputs", "seen", "--stages", "strips") == 1
    records = json.loads(capsys.readouterr().out)
    assert [r["path"] for r in records] == [longest, too_long, "plain.png"]
    assert [r["status"] == "error" for r in records] == [False, True, False]
    assert len(list((folder / "seen").iterdir())) == 2
    assert len(list((folder / "strips").iterdir())) == 2


def test_a_folder_without_pictures_is_named_as_one(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "empty").mkdir()
    assert run("empty", "plain.png", "--jsonl") == 1
    captured = capsys.readouterr()
    assert "empty is a folder that holds no pictures" in captured.err
    assert len(captured.out.splitlines()) == 2


def test_an_error_is_one_line_whatever_the_name(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "broken\nname.png").write_text("no picture")
    assert run("broken\nname.png") == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if "broken" in line]
    assert errors == ["error: broken?name.png is not a picture that Pillow can read"]


def command(
    *arguments: str, cwd: Path, content: bytes = b"", **environment: str
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "mnist_ce", "predict", "--checkpoint", "net.pt", *arguments],
        cwd=cwd,
        input=content,
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environment},
    )


def test_stdin(folder: Path) -> None:
    done = command("-", "--json", cwd=folder, content=(folder / "plain.png").read_bytes())
    assert done.returncode == 0, done.stderr
    (record,) = json.loads(done.stdout)
    assert record["path"] == "-"


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes exist on Linux only")
def test_names_that_are_no_text_and_outputs_that_cannot_show_them(folder: Path) -> None:
    odd = os.fsencode(folder) + b"/odd\xff.png"
    Path(os.fsdecode(odd)).write_bytes((folder / "plain.png").read_bytes())
    for encoding in ("utf-8", "ascii"):
        for output in ("--jsonl", "--json", "--csv", "--top-k=1"):
            done = command(".", output, cwd=folder, PYTHONIOENCODING=encoding)
            assert done.returncode == 1, done.stderr  # for the broken one
            assert b"Traceback" not in done.stderr
            if output == "--jsonl":
                paths = [json.loads(line)["path"] for line in done.stdout.splitlines()]
                assert "odd\udcff.png" in paths
                assert "Ünïcode 数字.png" in paths


def test_many_pictures_go_through_several_processes_in_order(folder: Path) -> None:
    (folder / "many").mkdir()
    content = (folder / "plain.png").read_bytes()
    for i in range(230):
        (folder / "many" / f"{i:03}.png").write_bytes(content)
    done = command("many", "--jsonl", "--threads", "2", cwd=folder)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [r["path"] for r in records] == [f"many/{i:03}.png" for i in range(230)]
    assert len({r["label"] for r in records}) == 1
    assert b"Traceback" not in done.stderr


def test_torchvision_and_matplotlib_are_not_imported(folder: Path) -> None:
    check = (
        "import sys; from mnist_ce.cli import main; "
        "code = main(['predict', '--checkpoint', 'net.pt', 'plain.png']); "
        "print([m for m in ('torchvision', 'matplotlib', 'pandas') if m in sys.modules]); "
        "sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", check],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
