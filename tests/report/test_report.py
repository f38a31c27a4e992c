from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from shutil import copytree, which
from typing import Any
from unittest.mock import Mock

import pytest
from PIL import Image

from mnist_ce.cli import main
from mnist_ce.report.plots.canvas import Canvas
from mnist_ce.report.report import report
from mnist_ce.runs.run_dir import RunDir
from mnist_ce.system.errors import DataError
from mnist_ce.system.files import write_atomically
from mnist_ce.training.callbacks import TrainResult

OF_TEST_IMAGES = {"confusion_matrix.png", "mistakes.png", "calibration.png"}
PLOTS = {"curves.png", "weights.png"} | OF_TEST_IMAGES
CURVES = 1  # of a page: all curves in one figure
NASTY = '<script>alert(1)</script>&"x$y'

Train = Callable[..., TrainResult]
Log = Callable[[], list[str]]
pytestmark = pytest.mark.usefixtures("small_data")


@pytest.fixture(scope="module")
def trained(train_small_in: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for name, rate in (("slow", 0.01), ("quick", 0.3)):
        for seed in (0, 1):
            settings = {"train__seed": seed, "optimizer__learning_rate": rate}
            train_small_in(folder, f"{name}-{seed}", **settings)
    train_small_in(folder, "yes", objective__kind="binary")
    return folder


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    return copytree(trained, tmp_path / "runs")


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is drawn, which takes the most time."""
    for kind in ("curves", "weights", "confusion_matrix", "mistakes", "reliability"):
        monkeypatch.setattr(f"mnist_ce.report.report.draw_{kind}", lambda *what: b"PNG")


def plots(run: Path) -> set[str]:
    return {path.name for path in run.glob("*.png")}


def edit_record(run: Path, **changes: object) -> None:
    path = RunDir(run).record_path
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


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
    with_plots, without = train_small("a", run__plots=True), train_small("b")
    assert plots(with_plots.run.path) == PLOTS
    for name in PLOTS:
        with Image.open(with_plots.run.path / name) as image:
            assert image.width >= 600
    assert plots(without.run.path) == set()
    assert with_plots.record["weights_sha256"] == without.record["weights_sha256"]


def test_a_failure_to_draw_is_a_warning(
    train_small: Train, monkeypatch: pytest.MonkeyPatch, log_warnings: Log
) -> None:
    monkeypatch.setattr(Canvas, "png", Mock(side_effect=ValueError("no font\nat all")))
    assert train_small("a", run__plots=True).record["status"] == "finished"
    (warning,) = log_warnings()
    assert "no font; draw them with: mnist-ce report" in warning


@pytest.mark.usefixtures("undrawn")
def test_the_report_of_one_run_stands_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], train_small: Train
) -> None:
    result = train_small("a", data__validation_size=100)
    run = RunDir(tmp_path / NASTY.replace("/", ""))  # as another program can call it
    result.run.path.rename(run.path)
    assert main(["report", "--output", str(tmp_path)]) == 0
    file = run.path / "report.html"
    assert capsys.readouterr().out == f"{file}\n"
    page = Page(file)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "base"}
    assert plots(run.path) == PLOTS
    assert page.addresses() == ["data:image/png;base64,UE5H"] * (CURVES + len(PLOTS) - 1)
    assert "url(" not in file.read_text()
    record = result.record
    numbers = (f"{100 * record['test_accuracy']:.2f} %", f"{record['test_loss']:.4f}")
    origin = (record["weights_sha256"], record["versions"]["torch"], run.name)
    settings = ("data.validation_size", "validation accuracy", "hidden = [")
    headline = f"{record['test_correct']:,} of 1,000 test images are classified correctly"
    repeats = f"mnist-ce train --config '{run.path}/config.toml'"
    for expected in (*numbers, *origin, *settings, headline, repeats):
        assert expected in page.text


@pytest.mark.usefixtures("undrawn")
def test_several_runs_are_compared(runs: Path) -> None:
    file = report(["slow-0", "yes"], output=runs)
    assert file == runs / "report.html"
    page = Page(file)
    assert len(page.addresses()) == CURVES + 2 * (len(PLOTS) - 1)
    assert "yes is the most accurate of 2 runs" in page.text
    assert "mnist-ce compare " in page.text
    assert len([tag for tag, _ in page.tags if tag == "strong"]) == 3  # accuracy, loss, time
    names = [attrs["alt"] for tag, attrs in page.tags if tag == "img"][CURVES:]
    assert names[:2] == ["confusion matrix of slow-0", "confusion matrix of yes"]
    table = page.text[page.text.index("Settings in which the runs differ") :]
    assert re.search(r"optimizer\.learning_rate\s*0\.01\s*0\.1\b", table)
    assert "train.epochs" not in table[: table.index("slow-0", 60)]


@pytest.mark.usefixtures("undrawn")
def test_groups_have_means_bands_and_a_verdict(runs: Path) -> None:
    (runs / "other").mkdir()
    page = Page(report(["slow-0", "quick-0", "slow-1", "quick-1"], output=runs))
    text = " ".join(page.text.split())
    slow, quick = (f"mnist default learning_rate={rate}" for rate in (0.01, 0.3))
    verdict = r"better than .* percentage points \(95 % interval \d+\.\d+ to \d+\.\d+; p = "
    assert re.search(f"{quick} is {verdict}", text)
    assert "It assumes" in text
    assert text.count("±") == 3
    assert sum(attrs.get("alt") == "Mean curves of the groups" for _, attrs in page.tags) == 1
    assert slow in text
    # The same with runs of one name in two folders.
    for kind in ("slow", "quick"):
        (runs / f"{kind}-1").rename((runs / "other").joinpath(f"{kind}-0"))
    paths = [str(runs / name) for name in ("slow-0", "quick-0", "other/slow-0", "other/quick-0")]
    again = " ".join(Page(report(paths, output=runs)).text.split())
    assert again.partition("Results")[0] == text.partition("Results")[0]


@pytest.mark.usefixtures("undrawn")
def test_a_stopped_run_and_one_without_its_data_are_drawn(
    runs: Path, monkeypatch: pytest.MonkeyPatch, log_warnings: Log
) -> None:
    run = runs / "yes"
    edit_record(run, prediction={"temperature": 1.7}, status="stopped")
    with monkeypatch.context() as patch:
        fail = Mock(side_effect=DataError("it is not here"))
        patch.setattr("mnist_ce.evaluation.evaluate.load_splits", fail)
        report(["yes"], output=runs)
    assert plots(run) == {"curves.png", "weights.png"}
    assert log_warnings() == ["yes: plots of test images are not redrawn: it is not here"]
    file = report(["yes"], output=runs, file=runs / "elsewhere.html")
    assert file == runs / "elsewhere.html"
    assert "This run is not finished (status: stopped)." in Page(file).text
    assert plots(run) == PLOTS


@pytest.mark.usefixtures("undrawn")
def test_a_module_of_ones_own_is_reported_by_its_metrics(runs: Path, log_warnings: Log) -> None:
    for seed in (0, 1):
        edit_record(runs / f"quick-{seed}", custom={"model": "x.CNN"})
    page = Page(report(["slow-0", "slow-1", "quick-0", "quick-1"], output=runs))
    assert "custom.model" not in page.text
    assert "model=x.CNN" in page.text
    assert "better than" not in page.text  # nothing is known about single images
    assert [line.partition(": ")[0] for line in log_warnings()] == ["quick-0", "quick-1"]
    assert (plots(runs / "slow-0"), plots(runs / "quick-0")) == (PLOTS, {"curves.png"})


@pytest.mark.usefixtures("undrawn")
def test_a_record_from_a_stranger_is_escaped(runs: Path) -> None:
    nasty: dict[str, Any] = dict.fromkeys(("recipe", "device", "status", "git_commit"), NASTY)
    nasty |= {"config": {"data": {NASTY: NASTY}}, "versions": {NASTY: NASTY}}
    nasty |= {"test_correct": "x", "train_seconds": None, "class_names": [NASTY] * 10}
    edit_record(runs / "slow-0", **nasty)
    (runs / "slow-0" / "config.toml").write_text(f"# {NASTY}")
    page = Page(report(["slow-0"], output=runs))
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count("<script>alert(1)") > 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--output nowhere", "there is no finished run in"),
        ("nothing", "there is no run nothing in"),
        ("young", "has no model.pt yet"),
        ("bad", "metrics.csv is not a table of metrics with a row per epoch"),
        ("odd", "steps.csv is not a table of metrics with a row per step"),
        ("yes --file /dev/null/report.html", "Not a directory"),
    ],
)
@pytest.mark.usefixtures("undrawn")
def test_what_cannot_be_reported_is_one_error_line(
    runs: Path, refused: Callable[..., tuple[int, str]], arguments: str, message: str
) -> None:
    for name, file in (("bad", "metrics.csv"), ("odd", "steps.csv"), ("young", "model.pt")):
        path = copytree(runs / "yes", runs / name) / file
        path.write_text("loss\n1\n")
    path.unlink()
    code, error = refused("report", "--output", str(runs), *arguments.split())
    assert code == 1
    assert message in error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "head", "row", "num_rows", "code"),
    [
        ("steps.csv", "step,epoch,loss,accuracy,learning_rate", "{},2,0.5,0.9,0.1", 720_000, 0),
        ("metrics.csv", "epoch,train_loss,test_loss,test_accuracy", "{},1,1,0.5", 100_000, 0),
        ("metrics.csv", "epoch", "1", 8_000_000, 1),
    ],
)
def test_the_largest_tables_take_seconds(
    runs: Path, file: str, head: str, row: str, num_rows: int, code: int
) -> None:
    rows = "\n".join(map(row.format, range(1, num_rows))) + "\n"
    (runs / "yes" / file).write_text(f"{head}\n{rows}"[: 1 << 24])
    started = time.process_time()
    assert main(["report", "yes", "--output", str(runs)]) == code
    assert time.process_time() - started < 10


@pytest.mark.browser
def test_the_report_looks_right_in_a_browser(runs: Path) -> None:
    """The page is as wide as the window, not wider, its plots are shown, and it can be dark."""
    chromium = which("chromium") or which("chromium-browser") or which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium, which is not installed")
    page = report(["slow-0", "yes"], output=runs).read_text()
    # The report's policy lets no script run, so what is measured is a copy without it.
    copy = re.sub(r"<meta\s+http-equiv.*?>", "", page, count=1, flags=re.DOTALL)
    copy += """<script>onload = () => parent.postMessage({
        page: document.documentElement.scrollWidth, window: innerWidth,
        paper: getComputedStyle(document.body).backgroundColor,
        images: [...document.images].map(image => [image.naturalWidth, image.width]),
        columns: new Set([...document.images].map(image => image.x)).size}, '*')</script>"""
    (runs / "copy.html").write_text(copy)
    widths = {1280: 2, 390: 1}  # and the columns of plots
    frames = (f'<iframe src="copy.html" style="width: {w}px; border: 0"></iframe>' for w in widths)
    collect = "onmessage = event => document.title = JSON.stringify(seen.push(event.data) && seen)"
    script = f"<title></title><script>const seen = []; {collect}</script>"
    (runs / "frames.html").write_text(script + "".join(frames))
    options = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
        *(f"--user-data-dir={runs / 'profile'}", "--force-dark-mode", "--window-size=1400,900"),
        *("--virtual-time-budget=5000", "--dump-dom", (runs / "frames.html").as_uri()),
    ]
    run = subprocess.run(
        [chromium, *options], capture_output=True, text=True, timeout=120, check=True
    )
    (title,) = re.findall(r"<title>(.*?)</title>", run.stdout)
    seen = {one["window"]: one for one in json.loads(title.replace("&quot;", '"'))}
    assert seen.keys() == widths.keys()
    for width, columns in widths.items():
        assert seen[width]["page"] <= width
        assert seen[width]["paper"] == "rgb(20, 20, 20)"
        assert seen[width]["columns"] == columns
        assert len(seen[width]["images"]) == CURVES + 2 * (len(PLOTS) - 1)
        assert all(natural >= shown > 340 for natural, shown in seen[width]["images"])


def test_a_run_that_may_only_be_read_is_reported_elsewhere(
    runs: Path, undrawn: None, monkeypatch: pytest.MonkeyPatch, log_warnings: Log, tmp_path: Path
) -> None:
    def refuse(path: Path, content: bytes | str) -> None:
        if runs in path.parents:
            raise PermissionError(13, "Permission denied", str(path))
        write_atomically(path, content)

    monkeypatch.setattr("mnist_ce.report.report.write_atomically", refuse)
    path = report(["quick-0"], output=runs, file=tmp_path / "report.html")
    assert len(Page(path).addresses()) == CURVES + len(PLOTS) - 1
    (warning,) = log_warnings()
    assert "quick-0: its plots are not kept there: Permission denied" in warning
