"""`mnist-ce predict`: formats, sources, exit codes."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from mnist_ce import evaluate, predict
from mnist_ce.cli import main
from mnist_ce.data.address import parse_address
from mnist_ce.data.synthetic import generate
from mnist_ce.network.model import MLP
from mnist_ce.prediction.predict import blanks
from mnist_ce.reader import pool as pool_module
from mnist_ce.reader.geometry import Box

Capsys = pytest.CaptureFixture[str]
MonkeyPatch = pytest.MonkeyPatch
pytestmark = pytest.mark.usefixtures("_folder")

STAGES = "stages/00001-sheet-stages.png"
NAMES = ("plain.png", "two words.png", "line\nbreak.png", "Ünïcode 数字.png", 'quote",comma.png')


@pytest.fixture(scope="module")
def pool() -> Iterator[pool_module.PreprocessPool]:
    with closing(pool_module.PreprocessPool(2)) as pool:
        yield pool


@pytest.fixture
def _folder(tmp_path: Path, monkeypatch: MonkeyPatch, pool: pool_module.PreprocessPool) -> None:
    """Work in a folder of images with difficult names, a broken one, and a network."""
    for name, image in zip(NAMES, generate(5, seed=4).images.numpy(), strict=True):
        Image.fromarray(image).save(tmp_path / name)
    (tmp_path / "zz broken.png").write_text("no image")
    torch.manual_seed(0)
    torch.save(MLP([8], 10).state_dict(), tmp_path / "net.pt")
    monkeypatch.chdir(tmp_path)
    # One pool for all tests: to start its processes takes longer than most of them.
    shared = Mock(wraps=pool, preprocess_all=pool.preprocess_all)
    shared.close = Mock()
    monkeypatch.setattr(pool_module, "PreprocessPool", lambda num_processes: shared)


def run(*arguments: str, checkpoint: str = "net.pt") -> int:
    return main(["predict", "--checkpoint", checkpoint, *arguments])


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
        "score", "threshold", "box", "line", "position", "text", "page",
    ]  # fmt: skip
    for row, record in zip(rows, records, strict=True):
        for name in ("path", "label", "probability"):
            assert row[name] == ("" if record[name] is None else str(record[name]))
        assert len(row["top_k"].split()) == len(record["top_k"])


def test_a_sheet_is_a_line_of_text_per_line_and_can_be_annotated(capsys: Capsys) -> None:
    digits = [255 - np.pad(image, 6) for image in generate(6, seed=4).images.numpy()]
    rows = [np.concatenate(digits[start : start + 3], axis=1) for start in (0, 3)]
    sheet = Image.fromarray(np.concatenate(rows)).resize((480, 320), Image.Resampling.BICUBIC)
    sheet.save("sheet.png")
    assert run("sheet.png", "--single", checkpoint="pretrained") == 0
    rejected = capsys.readouterr().out
    assert "6 digits in 2 lines" in rejected
    assert "%" not in rejected
    extra = ["--annotate", "marked", "--stages", "stages"]
    assert run("sheet.png", *extra, checkpoint="pretrained") == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("sheet.png line 1")
    assert second.endswith("sheet.png line 2")
    with Image.open("marked/00001-sheet.png") as marked, Image.open(STAGES) as stages:
        colours = [colour for _, colour in marked.convert("RGB").getcolors(1 << 20) or []]
        assert any(isinstance(c, tuple) and max(c) - min(c) > 80 for c in colours)
        assert stages.width > 500
    assert run("sheet.png", "--jsonl", checkpoint="pretrained") == 0
    records = json_lines(capsys.readouterr().out)
    assert run("sheet.png", "--multi", "--jsonl", checkpoint="pretrained") == 0
    assert json_lines(capsys.readouterr().out) == records
    assert run("sheet.png", "--text", checkpoint="pretrained") == 0
    assert capsys.readouterr().out == f"{records[0]['text']}\n{records[3]['text']}\n"
    assert [(r["line"], r["position"]) for r in records] == [(i // 3, i % 3) for i in range(6)]
    for i, record in enumerate(records):
        x, y, width, height = record["box"]
        assert i % 3 * 160 < x < x + width < (i % 3 + 1) * 160
        assert i // 3 * 160 < y < y + height < (i // 3 + 1) * 160
        assert (record["status"] == "ok") == (record["score"] >= record["threshold"])


def test_a_dash_between_digits_is_a_rejected_part(capsys: Capsys) -> None:
    page = Image.new("L", (500, 200), 250)
    digit = Image.fromarray(255 - generate(1, seed=4).images.numpy()[0]).resize((160, 160))
    for left in (10, 330):
        page.paste(digit, (left, 20))
    page.paste(20, (215, 96, 285, 108))
    page.save("dash.png")
    assert run("dash.png", "--multi", "--jsonl", checkpoint="pretrained") == 0
    first, dash, last = json_lines(capsys.readouterr().out)
    assert (first["status"], dash["status"], last["status"]) == ("ok", "rejected", "ok")
    assert dash["reason"] == "looks like a dash, not a digit"
    assert dash["text"][1] == "?"
    assert run("dash.png", "zz broken.png", "--text", checkpoint="pretrained") == 1
    out, err = capsys.readouterr()
    assert out == f"{dash['text']}\n?\n"
    assert "dash.png, digit 2: looks like a dash, not a digit" in err


@pytest.mark.parametrize("rows", [["123", "4 567"], ["12 3"], ["1111"], ["11 1 111", "11111"]])
def test_a_wide_gap_is_a_blank(rows: list[str]) -> None:
    lines = [
        [Box(0, 9 * n, 10, 9 * n + 5) for n, letter in enumerate(row) if letter != " "]
        for row in rows
    ]
    signs = iter("".join(rows).replace(" ", ""))
    read = ["".join(blank + next(signs) for blank in line) for line in blanks(lines)]
    assert read == rows


@pytest.mark.parametrize("mode", ["L", "I;16", "RGBA"])
def test_an_annotated_image_is_read_once(mode: str, monkeypatch: MonkeyPatch) -> None:
    page = np.full((90, 90), 200, np.uint8)
    page[20:70, 40:50] = 10
    image = Image.fromarray(page.astype(np.uint16) * 257 if mode == "I;16" else page)
    content = io.BytesIO()
    image.convert(mode).save(content, "PNG")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.getvalue())))
    assert run("-", "--annotate", "marked", "--min-confidence", "0") == 0
    with Image.open("marked/00001--.png") as marked:
        paper = marked.convert("RGB").getpixel((marked.width - 10, 300))
    assert paper == (200, 200, 200)


def test_each_image_has_a_record_and_each_error_one_line_that_names_it(
    monkeypatch: MonkeyPatch, capsys: Capsys
) -> None:
    Image.new("L", (80, 80), 255).save("blank.png")
    Path("empty").mkdir()
    Path("broken\nname.png").write_text("no image")
    content = io.BytesIO(Path("plain.png").read_bytes())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(content))
    words = ("-", "blank.png", "empty", "broken\nname.png", "p*n.png")  # a pattern, not expanded
    assert run(*words, "--jsonl", "--min-confidence", "0") == 1
    out, err = capsys.readouterr()
    records = [(record["path"], record["status"]) for record in json_lines(out)]
    assert records == [
        ("-", "ok"),
        ("blank.png", "rejected"),
        ("empty", "error"),
        ("broken\nname.png", "error"),
        ("plain.png", "ok"),
    ]
    assert "no ink found" in json_lines(out)[1]["reason"]
    assert "error: empty is a folder that holds no images" in err
    assert "error: broken?name.png is not an image that can be read: " in err


def test_the_networks_inputs_and_every_stage_are_written() -> None:
    image = generate(5, seed=4).images.numpy()[0]
    Image.fromarray(255 - image).resize((200, 200)).save("large.png")
    assert run("plain.png", "large.png", "--save-inputs", "inputs", "--stages", "stages") == 0
    inputs = sorted(Path("inputs").iterdir())
    assert [path.name for path in inputs] == ["00001-plain-0.png", "00002-large-0.png"]
    with Image.open(inputs[0]) as saved:
        np.testing.assert_array_equal(np.asarray(saved), image)
    assert len(list(Path("stages").iterdir())) == 2
    Image.new("L", (80, 80), 255).save("blank.png")
    assert run("blank.png", "--stages", "stages") == 0  # nothing to see is no failure
    assert Path("stages/00001-blank-stages.png").is_file()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("plain.png --text --csv", 2, "choose one"),
        ("plain.png --json --csv", 2, "choose one"),
        ("*o*.png --stages net.pt", 1, "net.pt: File exists"),
        ("plain.png --annotate net.pt", 1, "net.pt: File exists"),
        ("plain.png --save-inputs net.pt", 1, "net.pt: File exists"),
    ],
)
def test_options_that_do_not_fit(words: str, code: int, message: str, capsys: Capsys) -> None:
    assert run(*words.split()) == code
    out, err = capsys.readouterr()
    assert message in err
    assert out == ""


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes exist on Linux only")
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("output", ["--jsonl", "--json", "--csv", "--top-k=1"])
def test_any_name_in_any_encoding(encoding: str, output: str, monkeypatch: MonkeyPatch) -> None:
    names = {*NAMES, os.fsdecode(b"odd\xff.png"), f"{'数' * 83}nn.png"}  # the last has 255 bytes
    for name in names.difference(NAMES):
        os.link("plain.png", name)
    printed = io.BytesIO()
    with io.TextIOWrapper(printed, encoding=encoding) as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        arguments = (".", f"{'n' * 300}.png", output, "--save-inputs", "inputs", "--stages", "st")
        assert run(*arguments) == 1  # for the broken one, and the one that cannot exist
        text = printed.getvalue().decode(encoding, "surrogateescape")
    if output == "--jsonl":
        assert {r["path"] for r in json_lines(text) if r["status"] != "error"} == names
    if output == "--top-k=1":  # for people, who get a line per image
        assert "line?break.png" in text
        assert len(text.splitlines()) == len(names) + 2
    assert len(list(Path("inputs").iterdir())) == len(list(Path("st").iterdir())) == len(names)


def test_many_images_go_through_several_processes_in_order(capfd: Capsys) -> None:
    Path("many").mkdir()
    names = [f"many/{i:03}.png" for i in range(230)]
    for name in names:
        os.link("plain.png", name)
    assert run("many", "--jsonl", "--threads", "2") == 0
    out, err = capfd.readouterr()
    assert [record["path"] for record in json_lines(out)] == names
    assert "Traceback" not in err


def test_each_page_has_its_records(capsys: Capsys) -> None:
    first, second = (Image.open(name) for name in NAMES[:2])
    first.save("scan.tif", save_all=True, append_images=[second])
    assert run("plain.png", "scan.tif", "--jsonl", "--annotate", "marked") == 0
    alone, *pages = json_lines(capsys.readouterr().out)
    assert ([page.pop("page") for page in pages], "page" in alone) == ([1, 2], False)
    assert {**pages[0], "path": "plain.png"} == alone
    assert pages[1]["top_k"] != alone["top_k"]
    names = ["00001-plain.png", "00002-scan.png", "00003-scan.png"]
    assert sorted(path.name for path in Path("marked").iterdir()) == names
    assert run("plain.png", "scan.tif", "--csv") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["page"] for row in rows] == ["", "1", "2"]
    assert run("scan.tif") == 0
    assert "  scan.tif page 2" in capsys.readouterr().out


@pytest.mark.usefixtures("small_data", "one_thread")
def test_images_of_a_dataset_have_addresses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Callable[..., tuple[int, str]]
) -> None:
    result = evaluate("mnist").result
    expected, labels = result.predictions.tolist(), result.labels.tolist()
    capsys.readouterr()
    network = ["--checkpoint", "mnist"]
    assert main(["predict", "mnist:test[3]", *network, "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert (record["path"], record["label"]) == ("mnist:test[3]", expected[3])
    assert main(["predict", "mnist:test", *network, "--kaggle"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head == "ImageId,Label"
    assert lines == [f"{number},{label}" for number, label in enumerate(expected, 1)]
    assert [one.label for one in predict("mnist:train[3]", checkpoint="mnist")]
    assert main(["explain", "mnist:test[3]", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["target"] == labels[3]
    table = tmp_path / "p.csv"
    assert main(["evaluate", "mnist", "--predictions", str(table)]) == 0
    rows = [line.split(",") for line in table.read_text().splitlines()]
    assert rows[0] == ["index", "label", "prediction", *"0123456789"]
    assert [row[:3] for row in rows[1:]] == [
        [str(index), str(label), str(prediction)]
        for index, (label, prediction) in enumerate(zip(labels, expected, strict=True))
    ]
    assert all(abs(sum(map(float, row[3:])) - 1) < 1e-4 for row in rows[1:])
    code, error = refused("predict", "mnist:test[1000]")
    assert (code, "there are 1,000 images, counted from 0" in error) == (2, True)
    code, error = refused("predict", "mnist:validation[0]")
    assert (code, "mnist has no validation images" in error) == (2, True)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("mnist:test[9729]", ("mnist", "test", 9729)),
        ("mnist[5]", ("mnist", "test", 5)),
        ("kmnist:train", ("kmnist", "train", None)),
        ("csv:a.csv", ("csv:a.csv", None, None)),
        ("csv:C:\\a[1].csv:test[0]", ("csv:C:\\a[1].csv", "test", 0)),
        ("mnist", None),
        ("scans[3].png", None),
        ("data:image/png;base64,AAAA", None),
    ],
)
def test_an_address_is_read(text: str, address: object) -> None:
    assert parse_address(text) == address
    if address is not None and text != "mnist[5]":
        assert str(parse_address(text)) == text
