from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from shutil import copytree, which
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from mnist_ce.cli import main
from mnist_ce.report.report import report
from mnist_ce.runs.run_dir import RunDir
from mnist_ce.system.errors import DataError
from mnist_ce.training.trainer import TrainResult

OF_TEST_IMAGES = {"confusion_matrix.png", "mistakes.png", "calibration.png"}
PLOTS = {"curves.png", "weights.png"} | OF_TEST_IMAGES
CURVES = 1  # of a page: all curves in one figure
NASTY = '<script>alert(1)</script>&"x$y'

MonkeyPatch = pytest.MonkeyPatch
Train = Callable[..., TrainResult]
Refused = Callable[..., tuple[int, str]]
Log = Callable[[], list[str]]
pytestmark = pytest.mark.usefixtures("small_data")


def plots(run: RunDir) -> set[str]:
    return {path.name for path in run.path.glob("*.png")}


def edit_record(run: RunDir, **changes: object) -> None:
    record = json.loads(run.record_path.read_text())
    run.record_path.write_text(json.dumps({**record, **changes}))


class Page(HTMLParser):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def addresses(self) -> list[str | None]:
        keys = {"src", "href", "srcset", "action", "data"}
        return [value for _, attrs in self.tags for key, value in attrs.items() if key in keys]


def test_training_draws_plots_which_change_no_weight(train_small: Train) -> None:
    with_plots = train_small("a", run__plots=True)
    assert plots(with_plots.run) == PLOTS
    for name in PLOTS:
        with Image.open(with_plots.run.path / name) as image:
            assert image.width >= 600
    without = train_small("b")
    assert plots(without.run) == set()
    assert with_plots.record["weights_sha256"] == without.record["weights_sha256"]


def test_a_failure_to_draw_is_a_warning(
    train_small: Train, monkeypatch: MonkeyPatch, log_warnings: Log
) -> None:
    fail = Mock(side_effect=ValueError("no font\nat all"))
    monkeypatch.setattr("mnist_ce.report.plots.canvas.Canvas.png", fail)
    assert train_small("a", run__plots=True).record["status"] == "finished"
    (warning,) = log_warnings()
    assert "no font; draw them with: mnist-ce report" in warning


def test_the_report_of_one_run_stands_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], train_small: Train
) -> None:
    result = train_small(NASTY.replace("/", ""), data__validation_size=100)
    assert main(["report", "--output", str(tmp_path)]) == 0
    file = result.run.path / "report.html"
    assert capsys.readouterr().out == f"{file}\n"
    page = Page(file)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "base"}
    addresses = page.addresses()
    assert plots(result.run) == PLOTS
    assert len(addresses) == CURVES + len(PLOTS) - 1
    assert all(str(address).startswith("data:image/png;base64,") for address in addresses)
    assert "url(" not in file.read_text()
    assert result.run.name in page.text
    record = result.record
    numbers = (f"{100 * record['test_accuracy']:.2f} %", f"{record['test_loss']:.4f}")
    origin = (record["weights_sha256"], record["versions"]["torch"])
    settings = ("data.validation_size", "validation accuracy", "hidden = [")
    headline = f"{record['test_correct']:,} of 1,000 test images are classified correctly"
    repeats = f"mnist-ce train --config '{result.run.path}/config.toml'"
    for expected in (*numbers, *origin, *settings, headline, repeats):
        assert expected in page.text


def test_several_runs_are_compared(tmp_path: Path, train_small: Train) -> None:
    for name, rate, kind in (("slow", 0.01, "multiclass"), ("quick", 0.1, "binary")):
        train_small(name, optimizer__learning_rate=rate, objective__kind=kind)
    file = report(["slow", "quick"], output=tmp_path)
    assert file == tmp_path / "report.html"
    page = Page(file)
    assert len(page.addresses()) == CURVES + 2 * (len(PLOTS) - 1)
    assert "is the most accurate of 2 runs" in page.text
    assert "mnist-ce compare " in page.text
    assert len([tag for tag, _ in page.tags if tag == "strong"]) == 3  # accuracy, loss, time
    names = [attrs["alt"] for tag, attrs in page.tags if tag == "img"][CURVES:]
    assert names[:2] == ["confusion matrix of slow", "confusion matrix of quick"]
    table = page.text[page.text.index("Settings in which the runs differ") :]
    assert re.search(r"optimizer\.learning_rate\s*0\.01\s*0\.1\b", table)
    assert "train.epochs" not in table[: table.index("slow", 60)]


def test_groups_have_means_bands_and_a_verdict(tmp_path: Path, train_small: Train) -> None:
    names = [f"{kind}-{seed}" for kind in ("slow", "quick") for seed in (0, 1)]
    for name in names:
        rate = 0.3 if "quick" in name else 0.01
        train_small(name, train__seed=int(name[-1]), optimizer__learning_rate=rate)
    page = Page(report(names, output=tmp_path))
    text = " ".join(page.text.split())
    slow, quick = (f"mnist default learning_rate={rate}" for rate in (0.01, 0.3))
    verdict = r"better than .* percentage points \(95 % interval \d+\.\d+ to \d+\.\d+; p = "
    assert re.search(f"{quick} is {verdict}", text)
    assert "It assumes" in text
    assert text.count("±") == 3
    assert sum(attrs.get("alt") == "Mean curves of the groups" for _, attrs in page.tags) == 1
    assert slow in text


def test_a_stopped_run_and_one_without_its_data_are_drawn(
    tmp_path: Path, monkeypatch: MonkeyPatch, log_warnings: Log, train_small: Train
) -> None:
    run = train_small("a").run
    edit_record(run, prediction={"temperature": 1.7}, status="stopped")
    fail = Mock(side_effect=DataError("it is not here"))
    with monkeypatch.context() as patch:
        patch.setattr("mnist_ce.evaluation.evaluate.load_splits", fail)
        report(["a"], output=tmp_path)
    assert plots(run) == {"curves.png", "weights.png"}
    assert log_warnings() == ["a: plots of test images are not redrawn: it is not here"]
    file = report(["a"], output=tmp_path, file=tmp_path / "elsewhere.html")
    assert file == tmp_path / "elsewhere.html"
    assert "This run is not finished (status: stopped)." in Page(file).text
    assert plots(run) == PLOTS


def test_a_record_from_a_stranger_is_escaped(tmp_path: Path, train_small: Train) -> None:
    run = train_small("a").run
    nasty: dict[str, Any] = dict.fromkeys(("recipe", "device", "status", "git_commit"), NASTY)
    nasty |= {"config": {"data": {NASTY: NASTY}}, "versions": {NASTY: NASTY}}
    nasty |= {"test_correct": "x", "train_seconds": None, "class_names": [NASTY] * 10}
    edit_record(run, **nasty)
    run.config_path.write_text(f"# {NASTY}")
    page = Page(report(["a"], output=tmp_path))
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count("<script>alert(1)") > 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "there is no finished run in"),
        ("nothing", "there is no run nothing in"),
        ("young", "has no model.pt yet"),
        ("bad", "is not a table of metrics, a row per epoch"),
        ("odd", "steps.csv is not a table of metrics by step"),
        ("good --file /dev/null/report.html", "Not a directory"),
    ],
)
def test_what_cannot_be_reported_is_one_error_line(
    tmp_path: Path, refused: Refused, train_small: Train, arguments: str, message: str
) -> None:
    if arguments:
        good = train_small("good", train__epochs=1).run
        for name in ("bad", "odd", "young"):
            copytree(good.path, tmp_path / name)
        (tmp_path / "bad" / "metrics.csv").write_text("loss\n1\n")
        (tmp_path / "odd" / "steps.csv").write_text("loss\n1\n")
        (tmp_path / "young" / "model.pt").unlink()
    code, error = refused("report", *arguments.split(), "--output", str(tmp_path))
    assert code == 1
    assert message in error


def browse(chromium: str, profile: Path, width: int, *arguments: str) -> str:
    command = [
        *(chromium, "--headless", "--no-sandbox", "--disable-gpu"),
        *("--disable-background-networking", f"--user-data-dir={profile}"),
        *(f"--window-size={width},900", *arguments),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.browser
def test_the_report_looks_right_in_a_browser(tmp_path: Path, train_small: Train) -> None:
    """The page is as wide as the window, not wider, and its plots are shown."""
    chromium = which("chromium") or which("chromium-browser") or which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium, which is not installed")
    for name in ("a", "b"):
        train_small(name)
    file = report(["a", "b"], output=tmp_path)
    # The report's policy lets no script run, so what is measured is a copy without it.
    policy = re.compile(r"<meta\s+http-equiv.*?>", re.DOTALL)
    measure = (
        "<script>onload = () => { const page = document.documentElement;"
        "parent.postMessage(JSON.stringify({page: page.scrollWidth, window: innerWidth,"
        "images: [...document.images].map(image => [image.naturalWidth, image.width]),"
        "columns: new Set([...document.images].map(image => image.x)).size}), '*') }"
        "</script>"
    )
    copy = tmp_path / "copy.html"
    copy.write_text(policy.sub(measure, file.read_text(), count=1))
    for width, columns in ((1280, 2), (390, 1)):
        frame = tmp_path / "frame.html"  # Chromium's windows are not narrower than 500
        frame.write_text(
            "<title></title><script>onmessage = event => document.title = event.data</script>"
            f'<iframe src="copy.html" style="width: {width}px; border: 0"></iframe>'
        )
        shown = ("--virtual-time-budget=5000", "--dump-dom", frame.as_uri())
        page = browse(chromium, tmp_path / "profile", 1400, *shown)
        (title,) = re.findall(r"<title>(.*?)</title>", page)
        seen = json.loads(title.replace("&quot;", '"'))
        assert seen["page"] <= seen["window"] == width
        assert len(seen["images"]) == CURVES + 2 * (len(PLOTS) - 1)
        assert seen["columns"] == columns
        assert all(natural >= shown > 340 for natural, shown in seen["images"])

    for scheme, paper in (((), 255), (("--force-dark-mode",), 20)):
        shot = (f"--screenshot={tmp_path / 'shot.png'}", *scheme, file.as_uri())
        browse(chromium, tmp_path / "profile", 1280, *shot)
        with Image.open(tmp_path / "shot.png") as image:
            grey = np.asarray(image.convert("L"))
        is_paper = abs(grey.astype(int) - paper) <= 2  # as the plots' background
        assert is_paper.mean() > 0.7
