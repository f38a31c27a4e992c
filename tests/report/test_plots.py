from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
import pytest
from PIL import Image

from mnist_ce.report.plots.canvas import Canvas, Heading, percent
from mnist_ce.report.plots.curves import QUANTITIES, RunCurves, draw_curve, draw_curves
from mnist_ce.report.plots.evaluation import draw_calibration, draw_confusion_matrix
from mnist_ce.report.plots.grids import draw_mistakes, draw_weights

AxesOf = Callable[[bytes], list[Any]]
HEADING = Heading("a run", "a dataset")


@pytest.fixture
def axes_of(monkeypatch: pytest.MonkeyPatch) -> AxesOf:
    """Return a function that returns the matplotlib axes of a PNG file just drawn."""
    drawn: dict[bytes, list[Any]] = {}
    png = Canvas.png

    def remember(canvas: Canvas) -> bytes:
        content = png(canvas)
        drawn[content] = canvas.figure.axes
        return content

    monkeypatch.setattr(Canvas, "png", remember)
    return drawn.__getitem__


def texts(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.texts]


def colours(axes: Any) -> Any:
    """Colours of the only image on the axes, float [height, width, 3] in [0, 1]."""
    (image,) = axes.images
    return image.to_rgba(image.get_array())[..., :3]


def row(epoch: int, measured: bool = True) -> dict[str, Any]:
    values = {"train_loss": 1 / epoch, "train_accuracy": 0.9, "learning_rate": 0.1}
    tested = (1.2 / epoch, 0.8) if measured else (None, None)
    return {"epoch": epoch, **values, "test_loss": tested[0], "test_accuracy": tested[1]}


def steps(num_epochs: int, loss: float = 0.5) -> list[dict[str, float]]:
    """Rows of `steps.csv`, four per epoch of 30 steps."""
    places = [(epoch, step) for epoch in range(num_epochs) for step in (10, 20, 29, 30)]
    values = {"loss": loss, "accuracy": 0.75, "learning_rate": 0.1}
    return [{"step": 30 * e + step, "epoch": e + 1, **values} for e, step in places]


@pytest.mark.parametrize(("num_epochs", "has_steps"), [(0, 0), (1, 0), (1, 1), (3, 1), (400, 1)])
def test_curves_of_any_length_are_drawn(axes_of: AxesOf, num_epochs: int, has_steps: int) -> None:
    rows = [row(epoch) for epoch in range(1, num_epochs + 1)]
    run = RunCurves("a", rows, steps(num_epochs * has_steps))
    loss, error, rate = axes_of(draw_curves(HEADING, [run]))
    for axes in (loss, error, rate):
        assert bool(axes.lines) == (num_epochs > 0)
        assert all(len(line.get_xdata()) <= 1000 for line in axes.lines)
        assert axes.get_xlim() == (0, num_epochs or 1)
    if num_epochs:
        assert (loss.get_yscale(), error.get_yscale(), rate.get_yscale()) == (
            "log",
            "log",
            "linear",
        )
        assert loss.lines[-1].get_xdata().tolist() == list(range(1, num_epochs + 1))
        # Without steps, the mean over an epoch stands at its middle.
        assert loss.lines[0].get_xdata()[0] == (pytest.approx(1 / 3, abs=0.4) if has_steps else 0.5)
        trained = "train 25 %" if has_steps else "train 10 %"
        assert texts(error) == sorted(["test 20 %", trained], key=lambda text: text[-4:])


def test_the_line_is_smoothed_and_the_rows_are_faint(axes_of: AxesOf) -> None:
    noisy = [{**r, "loss": 2.0 + (-1) ** n} for n, r in enumerate(steps(100))]
    loss = axes_of(
        draw_curve("loss", "a", [RunCurves("a", [row(e) for e in range(1, 101)], noisy)])
    )
    faint, line, _ = loss[0].lines
    assert faint.get_alpha() < 1
    assert np.ptp(faint.get_ydata()) == pytest.approx(2)
    assert np.ptp(line.get_ydata()[20:-20]) < 0.3


def test_what_was_not_measured_or_has_no_logarithm(axes_of: AxesOf) -> None:
    untested = [row(1, False), row(2)]
    loss, error, _ = axes_of(draw_curves(HEADING, [RunCurves("a", untested)]))
    assert loss.lines[1].get_xydata().tolist() == [[2, 0.6]]
    assert error.lines[1].get_xydata() == pytest.approx(np.array([[2, 20]]))
    perfect = [{**row(1), "test_accuracy": 1.0, "test_loss": float("nan")}]
    loss, error, _ = axes_of(draw_curves(HEADING, [RunCurves("a", perfect)]))
    assert len(loss.lines) == 1
    assert error.lines[1].get_ydata()[0] == error.get_ylim()[0] > 0
    assert "test 0 %" in texts(error)


def test_each_overlaid_run_has_a_look_of_its_own(axes_of: AxesOf) -> None:
    runs = [RunCurves(f"run {number}", [row(1), row(2)], steps(2)) for number in range(20)]
    loss, _, rate = axes_of(draw_curves(HEADING, runs))
    points = loss.lines[1::2]
    assert len({(line.get_color(), line.get_marker()) for line in points}) == len(runs)
    assert [line.get_color() for line in rate.lines] == [line.get_color() for line in points]
    legend = [text.get_text() for text in loss.figure.legends[0].get_texts()]
    assert legend == [run.name for run in runs]
    assert texts(loss) == []  # too many to be legible
    ends = axes_of(draw_curves(HEADING, [*runs[:2]]))[0].texts
    assert [text.get_text() for text in ends] == ["0.6", "0.6"]
    assert ends[0].xyann != ends[1].xyann  # beside each other, not on top


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_a_curve_alone_is_as_wide_as_a_narrow_column(quantity: str) -> None:
    drawn = draw_curve(quantity, "a", [RunCurves("a", [row(1)], steps(1))])
    with Image.open(io.BytesIO(drawn)) as image:
        assert image.width < 700


@pytest.mark.parametrize(
    "name", ["a$b$", "$", r"\frac{", "two\nlines \x1b[31m", "名前", "long " * 100], ids=range(6)
)
def test_a_run_may_have_any_name(name: str) -> None:
    drawn = draw_curves(Heading(name, name), [RunCurves(name, [row(1)])] * 2)
    with Image.open(io.BytesIO(drawn)) as image:
        assert image.width > 1000


def test_the_most_frequent_error_is_the_darkest_and_the_diagonal_grey(axes_of: AxesOf) -> None:
    # 40 of 1,000 is the largest share of errors; the correct predictions are far more.
    confusion = [[1000, 0, 5, 0], [0, 960, 0, 40], [10, 0, 900, 0], [0, 0, 0, 0]]
    cells = colours(axes_of(draw_confusion_matrix(HEADING, confusion, tuple("abcd")))[0])
    brightness = cells.mean(axis=2)
    assert np.unravel_index(brightness.argmin(), brightness.shape) == (1, 3)
    assert (np.ptp(np.diagonal(cells), axis=0) < 0.05).all()  # red, green and blue are about equal
    perfect = axes_of(draw_confusion_matrix(HEADING, [[3, 0], [0, 4]], ("no", "yes")))[0]
    assert sorted(texts(perfect))[:4] == ["100.0 %", "100.0 %", "3", "4"]


def mistakes(num_wrong: int) -> bytes:
    images = np.zeros((40, 28, 28), dtype=np.uint8)
    images[:, 10:18, 10:18] = 255
    labels = np.zeros(40, dtype=np.int64)
    predictions = (np.arange(40) < num_wrong).astype(np.int64)
    probabilities = np.tile(np.array([0.1, 0.9], np.float32), (40, 1))
    return draw_mistakes(HEADING, images, labels, predictions, probabilities, ("no", "yes"))


@pytest.mark.parametrize(("num_wrong", "num_drawn"), [(0, 0), (1, 1), (7, 7), (30, 24)])
def test_mistakes_are_drawn_dark_on_white(axes_of: AxesOf, num_wrong: int, num_drawn: int) -> None:
    (axes,) = axes_of(mistakes(num_wrong))
    assert (colours(axes) == 0).all(axis=2).sum() == num_drawn * 40 * 40  # enlarged
    captions = texts(axes)
    assert sum("90.0 %" in caption for caption in captions) == num_drawn
    assert ("No mistakes among 40 images." in captions) == (num_drawn == 0)


def test_the_most_confident_mistake_comes_first(axes_of: AxesOf) -> None:
    images = np.tile(np.array([0, 255, 128], np.uint8)[:, None, None], (1, 28, 28))
    labels, predictions = np.array([0, 0, 0]), np.array([1, 1, 1])
    probabilities = np.array([[0.4, 0.6], [0.1, 0.9], [0.2, 0.8]], dtype=np.float32)
    drawn = draw_mistakes(HEADING, images, labels, predictions, probabilities, ("a", "b"))
    (axes,) = axes_of(drawn)
    found = [" ".join(caption.split()) for caption in texts(axes) if "%" in caption]
    assert found == ["90.0 % #1", "80.0 % #2", "60.0 % #0"]
    darkest = [tile.min() for tile in np.split(colours(axes), 4, axis=1)[:3]]
    assert darkest[0] == 0 < darkest[1] < darkest[2]


def test_weights_are_white_at_zero_and_coloured_by_their_sign(axes_of: AxesOf) -> None:
    weight = np.zeros((2, 784), dtype=np.float32)
    weight[0, :392], weight[0, 392:] = 1.0, -1.0
    drawn = colours(axes_of(draw_weights(HEADING, weight))[0])
    red, blue = drawn[:28, :28, 0], drawn[:28, :28, 2]
    assert (red[:14] > 2 * blue[:14]).all()
    assert (blue[14:] > 2 * red[14:]).all()
    assert (drawn[:28, 30:58] > 0.95).all()  # the second unit
    alone = axes_of(draw_weights(HEADING, np.zeros((1, 784), dtype=np.float32)))[0]
    assert (colours(alone)[:28, :28] > 0.95).all()


def test_calibration_is_drawn_before_and_after(axes_of: AxesOf) -> None:
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.5, 1, 500) ** 0.1
    series = dict.fromkeys(("as trained", "temperature 2"), (sure, rng.uniform(size=500) < sure))
    diagram, _ = axes_of(draw_calibration(HEADING, series))
    assert len(diagram.containers) == 2
    dots = diagram.collections[-1]
    assert dots.get_sizes().argmax() == len(dots.get_sizes()) - 1  # most are near 100 %
    assert dots.get_sizes().max() > 10 * dots.get_sizes().min()


def test_the_accuracy_of_what_is_kept_rises_to_certainty(axes_of: AxesOf) -> None:
    sure = np.linspace(0.5, 1, 100)
    correct = np.arange(100) >= 10  # the ten least probable ones are wrong
    _, kept = axes_of(draw_calibration(HEADING, {"a": (sure, correct)}))
    accuracy = dict(zip(*np.round(kept.lines[0].get_data(), 6), strict=True))
    assert accuracy[0.0] == 0.9
    assert accuracy[0.05] == pytest.approx(90 / 95, abs=1e-6)
    assert accuracy[0.1] == 1
    assert texts(kept) == ["90.00 %", "94.74 %"]
    every = axes_of(draw_calibration(HEADING, {"a": (sure, correct | True)}))[1]
    assert set(every.lines[0].get_ydata()) == {1.0}


@pytest.mark.parametrize(
    ("fraction", "decimals", "text"),
    [(1, 1, "100.0 %"), (0.99999, 1, "> 99.9 %"), (0.9994, 1, "99.9 %"), (0.99996, 2, "> 99.99 %")],
)
def test_percent_never_rounds_up_to_certainty(fraction: float, decimals: int, text: str) -> None:
    assert percent(fraction, decimals) == text


def test_equal_input_gives_equal_bytes_under_any_settings_of_matplotlib() -> None:
    plain = mistakes(5)
    assert mistakes(5) == plain
    with matplotlib.rc_context({"font.size": 30.0, "axes.facecolor": "black"}):
        assert mistakes(5) == plain
        assert matplotlib.rcParams["font.size"] == 30.0
