"""What results show of themselves, as text and in a notebook."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from typing import Any

import pytest

from mnist_ce import evaluate, predict
from mnist_ce.data.synthetic import generate
from mnist_ce.evaluation.comparison import compare
from mnist_ce.training.callbacks import TrainResult


def test_results_show_themselves(train_small: Callable[..., TrainResult]) -> None:
    results = [train_small(run__name=f"seed{seed}", train__seed=seed) for seed in (0, 1)]
    images = generate(3, seed=4).images.numpy()
    report, comparison = evaluate(results[0].run.path), compare(*(r.run.path for r in results))
    (single,) = predictions = predict(images[0])
    (gone,) = predict("<b>.png")
    for result, shown in (
        (
            results[0],
            r"<TrainResult: \d+\.\d+ % of 1,000 test images correct \(95 % .*\); mnist, recipe",
        ),
        (report, r"<EvaluationReport: seed0 on mnist, test split: \d+ of 1,000 correct \("),
        (comparison, r"<Comparison: [\d,]+ of 1,000 images are predicted differently"),
        (single, r"<Prediction: \d \([>.\d ]+%\)>"),
        (gone, r"<Prediction: <b>.png: error, <b>.png does not exist>"),
        (predictions, r"\[<Prediction: \d \("),
        (predict(images), r"\[<Prediction: "),
    ):
        assert re.match(shown, repr(result)), repr(result)
        html: str = result._repr_html_()
        urls = re.findall(r'src="data:image/png;base64,([^"]*)"', html)
        assert "<b>.png" not in html
        assert len(repr(result)) < 300
        assert bool(urls) == (result is not gone)
        assert all(base64.b64decode(url).startswith(b"\x89PNG") for url in urls)
    html = results[0]._repr_html_()
    assert html.count("<tr>") == 3
    assert "test_accuracy" in html


def test_every_shown_image_has_its_caption() -> None:
    row: Any = predict(list(generate(30, seed=4).images.numpy()))
    html = row._repr_html_()
    assert html.count("<figure") == html.count("<figcaption>") == 24


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_a_png_url_shows_an_image(level: float) -> None:
    import io

    import numpy as np
    from PIL import Image

    from mnist_ce.system.notebook import png_url

    url = png_url(np.full((300, 200), level, np.float32))
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
        assert max(image.size) == 140
        assert image.getpixel((5, 5)) == int(level * 255)
