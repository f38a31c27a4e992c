from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mnist_ce.evaluation.evaluate import EvaluationReport, SplitResult
from mnist_ce.network.objective import Multiclass
from mnist_ce.report.plots.canvas import Canvas
from mnist_ce.report.plots.curves import RunMetrics, draw_curves
from mnist_ce.report.plots.evaluation import draw_confusion_matrix, draw_reliability
from mnist_ce.report.plots.images import draw_mistakes, draw_weights
from mnist_ce.runs.load_model import TrainedModel
from mnist_ce.system.text import percent

Texts = Callable[[bytes], list[str]]
HEADING = ("a run", "a dataset")


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> Texts:
    """Return a function that returns what can be read in a PNG file just drawn."""
    from matplotlib.text import Text

    drawn: dict[bytes, list[str]] = {}
    png = Canvas.png

    def remember(canvas: Canvas) -> bytes:
        content = png(canvas)
        items = canvas.figure.findobj(Text)
        drawn[content] = [item.get_text() for item in items if item.get_visible()]
        return content

    monkeypatch.setattr(Canvas, "png", remember)
    return drawn.__getitem__


def pixels(png: bytes) -> Any:
    """The colours of a PNG file, int [height, width, 3]."""
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def row(
    epoch: int, test_loss: float | None = 0.6, test_accuracy: float | None = 0.8
) -> dict[str, Any]:
    train = {"train_loss": 1 / epoch, "train_accuracy": 0.9, "learning_rate": 0.1}
    return {"epoch": epoch, **train, "test_loss": test_loss, "test_accuracy": test_accuracy}


def metrics(num_epochs: int, *, has_steps: bool = True, loss: float = 0.5) -> RunMetrics:
    """The metrics of a run with 30 steps per epoch, four of them in `steps.csv`."""
    columns = ("step", "epoch", "loss", "accuracy", "learning_rate")
    places = [(epoch, step) for epoch in range(num_epochs * has_steps) for step in (10, 20, 29, 30)]
    rows = [(30 * epoch + step, epoch + 1, loss, 0.75, 0.1) for epoch, step in places]
    steps = np.array(rows, [(name, float) for name in columns])
    return RunMetrics([row(epoch) for epoch in range(1, num_epochs + 1)], steps)


NO_STEPS = metrics(0).steps
UNTESTED = RunMetrics([row(1, None, None), row(2)], NO_STEPS)
PERFECT = RunMetrics([row(1, float("nan"), 1.0)], NO_STEPS)
UNEVEN = [RunMetrics([row(1), row(2, 0.3)], NO_STEPS), RunMetrics([row(1)], NO_STEPS)]
OF_GROUPS = "mean over the seeds"


@pytest.mark.parametrize(
    ("series", "present", "absent"),
    [
        ([("a", [metrics(0, has_steps=False)])], {"Learning rate", "epochs"}, {OF_GROUPS}),
        ([("a", [metrics(1, has_steps=False)])], {"test 20 %", "train 10 %", "test 0.6"}, set()),
        ([("a", [metrics(1)])], {"test 20 %", "train 25 %", "test 0.6", "0.1"}, set()),
        ([("a", [metrics(400)])], {"test 20 %", "train 25 %", "test 0.6", "0.1"}, set()),
        ([("a", [UNTESTED])], {"test 0.6", "test 20 %"}, {"nan"}),
        ([("a", [PERFECT])], {"test 0 %"}, {"nan"}),
        # Too many values to be legible.
        ([(f"run {n}", [metrics(2)]) for n in range(20)], {f"run {n}" for n in range(20)}, {"0.6"}),
        ([("a", [metrics(2, loss=loss) for loss in (0.4, 0.6)])], {"train 0.5", OF_GROUPS}, set()),
        # A row that one run lacks has no mean.
        ([("a", UNEVEN)], {"test 0.6", OF_GROUPS}, set()),
    ],
    ids=range(9),
)
def test_curves_show_what_was_measured(
    texts: Texts, series: list[tuple[str, list[RunMetrics]]], present: set[str], absent: set[str]
) -> None:
    drawn = draw_curves(*HEADING, series)
    assert pixels(drawn).shape[1] == 1296
    assert draw_curves(*HEADING, series) == drawn
    shown = "\n".join(["", *texts(drawn), ""])
    assert all(f"\n{text}" in shown for text in {*present, *HEADING, "Loss (mean cross-entropy)"})
    assert not any(text in shown for text in absent)


def test_a_group_has_a_band_where_its_runs_differ() -> None:
    runs = [metrics(2, loss=0.4), metrics(2, loss=0.6)]
    group, equal = (draw_curves(*HEADING, [("a", two)]) for two in (runs, [runs[0]] * 2))
    assert (pixels(group) != pixels(equal)).any()


@pytest.mark.parametrize(
    "name", ["a$b$", "$", r"\frac{", "two\nlines \x1b[31m", "名前", "long " * 100], ids=range(6)
)
def test_a_run_may_have_any_name(name: str) -> None:
    for drawn in (
        draw_curves(name, name, [(name, [metrics(1)])] * 2),
        draw_mistakes(evaluated(9), name),
    ):
        assert pixels(drawn).shape[1] > 600


def evaluated(
    num_wrong: int, temperature: float = 1.0, probability: float = 0.9
) -> EvaluationReport:
    """The report of 40 images of class no, with a square of ink, of which some are read as yes."""
    images = torch.zeros(40, 28, 28, dtype=torch.uint8)
    images[:, 10:18, 10:18] = 255
    is_wrong = torch.arange(40) < num_wrong
    margin = torch.linspace(0, 1e-3, 40) + np.log(probability / (1 - probability))  # of the logits
    logits = torch.stack([torch.zeros(40), torch.where(is_wrong, margin, -margin)], dim=1)
    labels = torch.zeros(40, dtype=torch.int64)
    model, names = nn.Identity(), ("no", "yes")
    trained = TrainedModel(
        model, Path("a.pt"), names, Multiclass(), None, "0" * 64, temperature=temperature
    )
    result = SplitResult(logits, labels, Multiclass())
    return EvaluationReport(trained, "mnist", "test", names, result, images)


@pytest.mark.parametrize(("num_wrong", "num_drawn"), [(0, 0), (1, 1), (30, 24), (40, 24)])
def test_the_plots_of_an_evaluation(texts: Texts, num_wrong: int, num_drawn: int) -> None:
    report = evaluated(num_wrong)
    matrix, mistakes, reliability = (
        draw(report, "my run") for draw in (draw_confusion_matrix, draw_mistakes, draw_reliability)
    )
    for drawn in (matrix, mistakes, reliability):
        assert pixels(drawn).shape[1] >= 700
        assert any(text.startswith("my run: ") for text in texts(drawn))
        assert any(text.startswith("mnist, test split: ") for text in texts(drawn))
    counts = {str(count) for count in (num_wrong, 40 - num_wrong) if count}
    fraction = percent(1 - num_wrong / 40)
    assert counts | {fraction, "no", "yes", "truth", "prediction"} <= set(texts(matrix))
    captions = [text.split() for text in texts(mistakes) if text.startswith("#")]
    # The most confident first: the margin rises with the index.
    assert [words[0] for words in captions] == [f"#{num_wrong - 1 - n}" for n in range(num_drawn)]
    assert texts(mistakes).count("predicted yes  90.0 %") == num_drawn
    assert ("None of 40 images." in texts(mistakes)) == (num_drawn == 0)
    assert (pixels(mistakes) == 0).all(axis=2).sum() >= num_drawn * 40 * 40  # dark, enlarged


def test_probabilities_are_those_at_the_temperature(texts: Texts) -> None:
    assert any("75.0 %" in text for text in texts(draw_mistakes(evaluated(3, 2.0), "a")))
    shown = texts(draw_reliability(evaluated(3, 2.0)))
    assert "a.pt: reliability diagram" in shown
    for label in ("as trained", "temperature 2"):
        assert any(text.startswith(f"{label}: expected calibration error ") for text in shown)
    assert "92.50 %" in shown  # of all, if none is rejected
    assert not any("temperature" in text for text in texts(draw_reliability(evaluated(3))))


def test_weights_are_white_at_zero_and_red_above() -> None:
    weight = np.zeros((2, 784), dtype=np.float32)
    colours = pixels(draw_weights(*HEADING, weight))[105:140, 50:120].reshape(-1, 3)
    assert (colours > 240).all()
    weight[0] = 1.0
    colours = pixels(draw_weights(*HEADING, weight))[105:140, 50:120].reshape(-1, 3)
    assert (colours[:, 0] > 2 * colours[:, 2]).mean() > 0.9  # red


@pytest.mark.parametrize(
    ("fraction", "decimals", "text"),
    [(1, 1, "100.0 %"), (0.99999, 1, "> 99.9 %"), (0.9994, 1, "99.9 %"), (0.99996, 2, "> 99.99 %")],
)
def test_percent_never_rounds_up_to_certainty(fraction: float, decimals: int, text: str) -> None:
    assert percent(fraction, decimals) == text


def test_the_settings_of_matplotlib_change_no_byte() -> None:
    before = draw_mistakes(evaluated(5), "a")
    with matplotlib.rc_context({"font.size": 30.0, "axes.facecolor": "black"}):
        assert draw_mistakes(evaluated(5), "a") == before
        assert matplotlib.rcParams["font.size"] == 30.0
