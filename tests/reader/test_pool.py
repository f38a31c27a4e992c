"""Preprocessing of many images: order, errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mnist_ce.reader.pool import PreprocessOptions, PreprocessPool, preprocess


@pytest.mark.parametrize("num_processes", [0, 2])
def test_the_pool_keeps_the_order_and_returns_errors(num_processes: int, tmp_path: Path) -> None:
    paths = [tmp_path / f"{i} ü.png" for i in range(20)]
    for i, path in enumerate(paths):
        page = np.full((50, 50), 255, np.uint8)
        page[10:40, 5 + i : 10 + i] = 0
        Image.fromarray(page).save(path)
    paths[7].write_text("no picture")
    with PreprocessPool(num_processes) as pool:
        results = list(pool.preprocess_all(paths, PreprocessOptions()))
    assert [r.path for r in results] == [str(path) for path in paths]
    assert [r.error is not None for r in results] == [i == 7 for i in range(20)]
    for path, result in zip(paths, results, strict=True):
        alone = preprocess(path, PreprocessOptions())
        boxes, own = ([h.digits[0].box for h in r.hypotheses] for r in (result, alone))
        assert boxes == own


def test_a_bug_costs_the_prediction_for_one_image_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise IndexError("out of bounds")

    monkeypatch.setattr("mnist_ce.reader.pool.hypotheses", fail)
    assert preprocess("x.png", PreprocessOptions()).error == "x.png does not exist"
    reason = "internal error while preprocessing the picture; please report: "
    result = preprocess(np.zeros((9, 9), np.uint8), PreprocessOptions())
    assert result.error == f"{reason}IndexError: out of bounds"
