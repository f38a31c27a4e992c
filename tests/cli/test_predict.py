"""`mnist-ce predict`: formats, sources, exit codes."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mnist_ce.cli import main
from mnist_ce.data.synthetic.generate import generate
from mnist_ce.network.model import MLP
from mnist_ce.reader.image_io import open_image

Capsys = pytest.CaptureFixture[str]
MonkeyPatch = pytest.MonkeyPatch
pytestmark = pytest.mark.usefixtures("_folder")

NAMES = ("plain.png", "two words.png", "line\nbreak.png", "Ünïcode 数字.png", 'quote",comma.png')


@pytest.fixture
def _folder(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    """Work in a folder of pictures with difficult names, a broken one, and a network."""
    for name, image in zip(NAMES, generate(5, seed=4).images.numpy(), strict=True):
        Image.fromarray(image).save(tmp_path / name)
    (tmp_path / "zz broken.png").write_text("no picture")
    torch.manual_seed(0)
    torch.save(MLP([8], 10).state_dict(), tmp_path / "net.pt")
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> int:
    return main(["predict", "--checkpoint", "net.pt", *arguments])


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_json_jsonl_and_csv_hold_the_same(capsys: Capsys) -> None:
    assert run(".", "--json") == 1
    captured = capsys.readouterr()
    records = json.loads(captured.out)
    assert sorted(r["path"] for r in records) == sorted((*NAMES, "zz broken.png"))
    assert [r["status"] for r in records].count("error") == 1
    assert captured.err.count("zz broken.png") == 1

    assert run(".", "--jsonl") == 1
    assert json_lines(capsys.readouterr().out) == records

    assert run(".", "--csv") == 1
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert list(rows[0]) == [
        "path", "index", "label", "class_name", "probability", "top_k", "status", "reason",
        "score", "threshold", "box", "line", "position", "text",
    ]  # fmt: skip
    for row, record in zip(rows, records, strict=True):
        assert row["path"] == record["path"]
        assert row["label"] == ("" if record["label"] is None else str(record["label"]))
        if record["label"] is not None:
            assert float(row["probability"]) == record["probability"]
            assert len(row["top_k"].split()) == 3


def test_the_environment_is_restored(monkeypatch: MonkeyPatch) -> None:
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    before = dict(os.environ)
    assert run("plain.png") == 0
    assert dict(os.environ) == before


def test_people_get_a_line_per_picture(capsys: Capsys) -> None:
    assert run("plain.png", "line\nbreak.png", "--top-k", "1") == 0
    first, second = capsys.readouterr().out.splitlines()
    assert "plain.png" in first
    assert "%" in first
    assert "line\\nbreak.png" in second


def test_a_sheet_is_a_line_of_text_per_line_and_can_be_annotated(capsys: Capsys) -> None:
    digits = [255 - np.pad(image, 6) for image in generate(6, seed=4).images.numpy()]
    rows = [np.concatenate(digits[start : start + 3], axis=1) for start in (0, 3)]
    sheet = Image.fromarray(np.concatenate(rows)).resize((480, 320), Image.Resampling.BICUBIC)
    sheet.save("sheet.png")
    command = ["sheet.png", "--checkpoint", "pretrained"]
    assert main(["predict", *command]) == 0
    rejected = capsys.readouterr().out
    assert "6 digits in 2 lines: use --multi" in rejected
    assert "%" not in rejected
    extra = ["--multi", "--annotate", "marked", "--stages", "stages.png"]
    assert main(["predict", *command, *extra]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("sheet.png line 1")
    assert second.endswith("sheet.png line 2")
    with Image.open("marked/00001-sheet.png") as marked, Image.open("stages.png") as stages:
        colours = [colour for _, colour in marked.convert("RGB").getcolors(1 << 20) or []]
        assert any(isinstance(c, tuple) and max(c) - min(c) > 80 for c in colours)
        assert stages.width > 500
    assert main(["predict", *command, "--multi", "--jsonl"]) == 0
    records = json_lines(capsys.readouterr().out)
    assert [(r["line"], r["position"]) for r in records] == [(i // 3, i % 3) for i in range(6)]
    for i, record in enumerate(records):
        x, y, width, height = record["box"]
        assert i % 3 * 160 < x < x + width < (i % 3 + 1) * 160
        assert i // 3 * 160 < y < y + height < (i // 3 + 1) * 160
        assert record["text"] == "".join(
            r["class_name"] if r["status"] == "ok" else "?"
            for r in records
            if r["line"] == record["line"]
        )
        assert (record["status"] == "ok") == (record["score"] >= record["threshold"])


def test_what_is_no_digit_is_a_part_that_was_not_read(capsys: Capsys) -> None:
    page = Image.new("L", (500, 200), 250)
    three = Image.fromarray(255 - generate(1, seed=4).images.numpy()[0]).resize((160, 160))
    for left in (10, 330):
        page.paste(three, (left, 20))
    page.paste(20, (215, 96, 285, 108))  # a dash between two digits
    page.save("dash.png")
    arguments = ["dash.png", "--checkpoint", "pretrained", "--multi", "--jsonl"]
    assert main(["predict", *arguments]) == 0
    records = json_lines(capsys.readouterr().out)
    assert [r["status"] for r in records] == ["ok", "rejected", "ok"]
    assert records[1]["reason"] == "looks like a dash, not a digit"
    assert records[1]["text"][1] == "?"


@pytest.mark.parametrize("mode", ["L", "I;16", "RGBA"])
def test_an_annotated_image_is_read_once(
    mode: str, monkeypatch: MonkeyPatch, capsys: Capsys
) -> None:
    dark = np.full((90, 90), 200, np.uint8)
    dark[20:70, 40:50] = 10
    image = Image.fromarray(dark)
    if mode == "I;16":
        image = Image.fromarray(dark.astype(np.uint16) * 257)
    image.convert(mode).save("one.png")

    def open_and_remove(source: Path) -> Image.Image:
        decoded = open_image(source)
        source.unlink()
        return decoded

    monkeypatch.setattr("mnist_ce.reader.pool.open_image", open_and_remove)
    assert run("one.png", "--annotate", "marked", "--min-confidence", "0") == 0
    assert "error" not in capsys.readouterr().out
    with Image.open("marked/00001-one.png") as marked:
        paper = marked.convert("RGB").getpixel((marked.width - 10, 300))
    assert paper == (200, 200, 200)


def test_an_unexpanded_pattern(capsys: Capsys) -> None:
    assert run("*o*.png", "--jsonl", "--min-confidence", "0") == 1  # the broken one
    paths = [record["path"] for record in json_lines(capsys.readouterr().out)]
    assert paths == ['quote",comma.png', "two words.png", "zz broken.png", "Ünïcode 数字.png"]


def test_nothing_found_is_an_answer_not_a_failure(capsys: Capsys) -> None:
    Image.new("L", (80, 80), 255).save("blank.png")
    assert run("blank.png", "--json", "--stages", "one.png") == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert record["status"] == "rejected"
    assert "no ink found" in record["reason"]
    assert Path("one.png").is_file()


def test_an_error_is_one_line_that_names_the_path(capsys: Capsys) -> None:
    Path("empty").mkdir()
    Path("broken\nname.png").write_text("no picture")
    assert run("empty", "broken\nname.png", "plain.png", "--jsonl") == 1
    out, err = capsys.readouterr()
    assert "error: empty is a folder that holds no images" in err
    assert "error: broken?name.png is not an image that Pillow can read\n" in err
    assert [record["status"] == "error" for record in json_lines(out)] == [True, True, False]


def test_what_the_network_saw_and_every_stage_are_written() -> None:
    image = generate(5, seed=4).images.numpy()[0]
    Image.fromarray(255 - image).resize((200, 200)).save("large.png")
    assert run("plain.png", "large.png", "--save-inputs", "seen", "--stages", "strips") == 0
    seen = sorted(Path("seen").iterdir())
    assert [path.name for path in seen] == ["00001-plain-0.png", "00002-large-0.png"]
    with Image.open(seen[0]) as saved:
        np.testing.assert_array_equal(np.asarray(saved), image)
    assert len(list(Path("strips").iterdir())) == 2
    assert run("large.png", "--stages", "one.png") == 0
    with Image.open("one.png") as strip:
        assert strip.width > 500


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("plain.png --json --csv", "choose one"),
        ("plain.png --stages strip.jpg", "--stages strip.jpg: name a folder"),
        ("*o*.png --stages strip.png", "--stages strip.png: name a folder"),
    ],
)
def test_options_that_do_not_fit(words: str, message: str, capsys: Capsys) -> None:
    assert run(*words.split()) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--save-inputs", "--stages", "--annotate"])
def test_a_file_where_a_folder_should_be(option: str, capsys: Capsys) -> None:
    assert run("plain.png", "two words.png", option, "net.pt") == 1
    out, err = capsys.readouterr()
    assert f"{option} net.pt: the folder cannot be made" in err
    assert out == ""


def test_the_longest_names(capsys: Capsys) -> None:
    longest = f"{'数' * 83}nn.png"  # 255 bytes
    Path(longest).write_bytes(Path("plain.png").read_bytes())
    names = (longest, f"{'n' * 300}.png", "plain.png")
    assert run(*names, "--json", "--save-inputs", "seen", "--stages", "strips") == 1
    records = json.loads(capsys.readouterr().out)
    assert tuple(r["path"] for r in records) == names
    assert [r["status"] == "error" for r in records] == [False, True, False]
    assert len(list(Path("seen").iterdir())) == len(list(Path("strips").iterdir())) == 2


def test_stdin(monkeypatch: MonkeyPatch, capsys: Capsys) -> None:
    content = io.BytesIO(Path("plain.png").read_bytes())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(content))
    assert run("-", "--json") == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert record["path"] == "-"


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes exist on Linux only")
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("output", ["--jsonl", "--json", "--csv", "--top-k=1"])
def test_names_that_are_no_text_and_outputs_that_cannot_show_them(
    encoding: str, output: str, monkeypatch: MonkeyPatch
) -> None:
    Path(os.fsdecode(b"odd\xff.png")).write_bytes(Path("plain.png").read_bytes())
    printed = io.BytesIO()
    with io.TextIOWrapper(printed, encoding=encoding) as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert run(".", output) == 1  # for the broken one
        if output == "--jsonl":
            paths = [json.loads(line)["path"] for line in printed.getvalue().splitlines()]
            assert {"odd\udcff.png", "Ünïcode 数字.png"} <= set(paths)


def test_many_pictures_go_through_several_processes_in_order(capfd: Capsys) -> None:
    Path("many").mkdir()
    names = [f"many/{i:03}.png" for i in range(230)]
    for name in names:
        os.link("plain.png", name)
    assert run("many", "--jsonl", "--threads", "2") == 0
    out, err = capfd.readouterr()
    assert [record["path"] for record in json_lines(out)] == names
    assert "Traceback" not in err
