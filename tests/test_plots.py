from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mnist_ce.report.plots import (
    Heading,
    draw_calibration,
    draw_confusion_matrix,
    draw_curves,
    draw_mistakes,
    draw_overlaid_curves,
    draw_weights,
)
from mnist_ce.report.plots.canvas import COLOURS, percent

HEADING = Heading("a run", "a dataset")
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Ankle boot")
VERMILION = (0xD5, 0x5E, 0x00)


def pixels(png: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


def count(png: bytes, colour: tuple[int, int, int]) -> int:
    return int((pixels(png) == np.array(colour)).all(axis=2).sum())


def row(epoch: int, **more: float | None) -> dict[str, Any]:
    values = {"train_loss": 1 / epoch, "train_accuracy": 0.9, "learning_rate": 0.1}
    return {"epoch": epoch, **values, "test_loss": None, "test_accuracy": None, **more}


def measured(epoch: int) -> dict[str, Any]:
    return row(epoch, test_loss=1.2 / epoch, test_accuracy=0.8)


@pytest.mark.parametrize("num_epochs", [0, 1, 3, 120])
def test_curves_of_any_length_are_drawn(num_epochs: int) -> None:
    drawn = draw_curves(HEADING, [measured(epoch) for epoch in range(1, num_epochs + 1)])
    assert (count(drawn, VERMILION) > 0) == (num_epochs > 0)


def test_what_was_not_measured_is_not_drawn() -> None:
    assert count(draw_curves(HEADING, [row(1), row(2)]), VERMILION) == 0
    assert count(draw_curves(HEADING, [row(1), measured(2)]), VERMILION) > 0


def test_each_overlaid_run_has_a_look_of_its_own() -> None:
    runs = [(f"run {number}", [measured(1), measured(2)]) for number in range(len(COLOURS))]
    drawn = pixels(draw_overlaid_curves(HEADING, runs))
    for colour in COLOURS:
        wanted = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)])
        assert (drawn == wanted).all(axis=2).any(), colour


@pytest.mark.parametrize(
    "name",
    ["a$b$", "$", r"\frac{", "two\nlines \x1b[31m", "名前", "long " * 100],
    ids=["maths", "dollar", "tex", "control", "kanji", "long"],
)
def test_a_run_may_have_any_name(name: str) -> None:
    drawn = draw_overlaid_curves(Heading(name, name), [(name, [measured(1)])])
    assert pixels(drawn).shape[1] == 1200


def test_the_most_frequent_error_is_the_darkest_cell_and_the_diagonal_is_grey() -> None:
    # 40 of 1,000 is the largest share of errors; the right answers are far more.
    confusion = [[1000, 0, 5, 0], [0, 960, 0, 40], [10, 0, 900, 0], [0, 0, 0, 0]]
    drawn = draw_confusion_matrix(HEADING, confusion, FASHION)
    darkest, right = (0x7F, 0x27, 0x04), (0xE8, 0xEC, 0xEF)
    cell = (1.1 * 120) ** 2
    assert 0.5 * cell < count(drawn, darkest) < 2 * cell  # one cell, and the end of the scale
    assert 2 * cell < count(drawn, right) < 4 * cell


def test_a_perfect_confusion_matrix_is_drawn() -> None:
    assert pixels(draw_confusion_matrix(HEADING, [[3, 0], [0, 4]], ("no", "yes"))).size


def mistakes(num_wrong: int, num_images: int = 40) -> bytes:
    images = np.zeros((num_images, 28, 28), dtype=np.uint8)
    images[:, 10:18, 10:18] = 255  # 8 × 8 of ink
    labels = np.zeros(num_images, dtype=np.int64)
    answers = np.where(np.arange(num_images) < num_wrong, 1, 0)
    probabilities = np.tile(np.array([[0.1, 0.9]], dtype=np.float32), (num_images, 1))
    return draw_mistakes(HEADING, images, labels, answers, probabilities, ("no", "yes"))


@pytest.mark.parametrize(("num_wrong", "num_drawn"), [(0, 0), (1, 1), (7, 7), (30, 24)])
def test_mistakes_are_drawn_dark_on_white(num_wrong: int, num_drawn: int) -> None:
    drawn = pixels(mistakes(num_wrong))
    black = int((drawn == 0).all(axis=2).sum())
    ink = 64 * 25  # an image's pixel is 5 × 5 of the picture
    letters = 3000  # of the heading
    assert num_drawn * ink <= black < num_drawn * ink + letters


def test_the_most_confident_mistake_comes_first() -> None:
    images = np.zeros((3, 28, 28), dtype=np.uint8)
    images[1], images[2] = 255, 128
    labels, answers = np.array([0, 0, 0]), np.array([1, 1, 1])
    probabilities = np.array([[0.4, 0.6], [0.1, 0.9], [0.2, 0.8]], dtype=np.float32)
    drawn = pixels(draw_mistakes(HEADING, images, labels, answers, probabilities, ("a", "b")))
    middle = drawn[12 + 90 + 70, [42 + 70 + 192 * place for place in range(3)], 0]
    assert middle.tolist() == [0, 127, 255]


def test_weights_are_white_at_zero_and_opposite_signs_have_opposite_colours() -> None:
    weight = np.zeros((2, 784), dtype=np.float32)
    weight[0, :392], weight[0, 392:] = 1.0, -1.0
    drawn = pixels(draw_weights(HEADING, weight)).astype(int)
    red = ((drawn[..., 0] > 90) & (drawn[..., 2] < 40)).sum()
    blue = ((drawn[..., 2] > 90) & (drawn[..., 0] < 40)).sum()
    half = 392 * 9  # a weight is 3 × 3 of the picture
    assert half <= red < 1.5 * half
    assert half <= blue < 1.5 * half


def test_a_network_of_one_unit_has_a_picture_of_its_weights() -> None:
    assert pixels(draw_weights(HEADING, np.zeros((1, 784), dtype=np.float32))).size


def test_calibration_is_drawn_before_and_after() -> None:
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.5, 1, 500)
    series = {"as trained": (sure, rng.uniform(size=500) < sure)}
    before = count(draw_calibration(HEADING, series), (0x00, 0x72, 0xB2))
    series["temperature 2"] = series["as trained"]
    assert before == 0 < count(draw_calibration(HEADING, series), (0x00, 0x72, 0xB2))


def test_equal_input_gives_equal_bytes() -> None:
    assert mistakes(5) == mistakes(5)


@pytest.mark.parametrize(
    ("fraction", "text"),
    [(1.0, "100.0 %"), (0.99999, "> 99.9 %"), (0.9994, "99.9 %"), (0.5, "50.0 %"), (0, "0.0 %")],
)
def test_percent_never_rounds_up_to_certainty(fraction: float, text: str) -> None:
    assert percent(fraction) == text


def test_plots_import_matplotlib_only_when_drawing_and_never_pyplot() -> None:
    code = (
        "import sys, mnist_ce.report.plots as plots\n"
        "assert 'matplotlib' not in sys.modules\n"
        "plots.draw_curves(plots.Heading('', ''), [])\n"
        "assert 'matplotlib.figure' in sys.modules\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_users_matplotlib_settings_neither_matter_nor_change() -> None:
    import matplotlib

    plain = draw_weights(HEADING, np.eye(3, 784, dtype=np.float32))
    with matplotlib.rc_context({"font.size": 30.0, "axes.facecolor": "black"}):
        assert draw_weights(HEADING, np.eye(3, 784, dtype=np.float32)) == plain
        assert matplotlib.rcParams["font.size"] == 30.0
