"""Predictions for every kind of input and of network."""

from __future__ import annotations

import dataclasses
import inspect
import io
import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from mnist_ce import load_model, predict
from mnist_ce.data.splits import Split
from mnist_ce.data.synthetic import generate
from mnist_ce.prediction.predict import (
    ROW_BONUS,
    PredictOptions,
    Predictor,
    ScoredDigit,
    predict_each,
    resolve_lattice,
)
from mnist_ce.reader.geometry import Box
from mnist_ce.reader.pool import PreprocessedImage
from mnist_ce.reader.segmentation import CROWDED, Hypothesis
from mnist_ce.reader.text_lines import Digit, Lattice
from mnist_ce.runs.load_model import TrainedModel
from mnist_ce.runs.records import RunRecord
from mnist_ce.system.errors import UsageError


@pytest.fixture(scope="module")
def digits() -> Split:
    return generate(400, seed=11)


@pytest.fixture(scope="module")
def trained() -> TrainedModel:
    return load_model("world")


def test_28x28_images_get_the_networks_own_predictions(
    trained: TrainedModel, digits: Split
) -> None:
    images = [Image.fromarray(image) for image in digits.images.numpy()]
    records = predict(images, checkpoint=trained, batch_size=7)
    inputs, temperature = digits.images.flatten(1).float() / 255, trained.temperature
    with torch.no_grad():
        expected = (trained.model(inputs) / temperature).softmax(1)
        scaled = (trained.model((inputs[:1] - 0.5) / 0.25) / temperature).softmax(1)
    assert [r.label for r in records] == expected.argmax(1).tolist()
    assert [r.probability for r in records] == pytest.approx(expected.max(1).values, abs=1e-5)
    (record,) = predict(images[0], checkpoint=trained, input_mean=0.5, input_std=0.25)
    assert record.probability == pytest.approx(float(scaled.max()), abs=1e-5)
    # these are rougher than MNIST's digits
    assert sum(r.status == "rejected" for r in records) <= 0.06 * len(records)


def test_inverted_and_enlarged_images_are_read(trained: TrainedModel, digits: Split) -> None:
    images = [Image.fromarray(image) for image in digits.images.numpy()[:25]]

    def accuracy(changed: list[Image.Image]) -> float:
        labels = [record.label for record in predict(changed, checkpoint=trained)]
        return float(np.mean(np.array(labels, float) == digits.labels[:25].numpy()))

    reference = accuracy(images)
    assert reference > 0.9
    assert accuracy([ImageOps.invert(image) for image in images]) == reference
    # The network is unsure of some of these digits: a few predictions depend on grey levels.
    for method in (Image.Resampling.NEAREST, Image.Resampling.BICUBIC):
        assert accuracy([image.resize((280, 280), method) for image in images]) > reference - 0.05


def test_every_kind_of_input_gets_the_same_prediction(
    trained: TrainedModel, digits: Split, tmp_path: Path
) -> None:
    tensor, image = digits.images[0], digits.images.numpy()[0]
    path = tmp_path / "a digit\nü.png"
    Image.fromarray(image).save(path)
    content, fractions = path.read_bytes(), tensor.float() / 255
    inputs: list[Any] = [path, str(path), content, bytearray(content), io.BytesIO(content)]
    inputs += [Image.open(path), image, image[..., None], np.stack([image] * 3, axis=-1)]
    inputs += [image.astype(np.int64), image / 255, image.astype(np.float32), tensor, tensor[None]]
    inputs += [fractions, fractions.requires_grad_(), np.stack([image / 255] * 3, axis=-1)]
    records = predict(inputs, checkpoint=trained)
    assert {r.reason for r in records} == {records[0].reason}
    assert len({(r.label, round(r.probability or 0, 6)) for r in records}) == 1
    assert [r.path for r in records] == [str(path), str(path), *[None] * (len(inputs) - 2)]
    np.testing.assert_array_equal(records[0].pixels, image)
    for alone in inputs:
        if hasattr(alone, "seek"):
            alone.seek(0)
        assert [r.label for r in predict(alone, checkpoint=trained)] == [records[0].label]


def test_an_array_of_images_and_any_iterable_are_many_images(
    trained: TrainedModel, digits: Split
) -> None:
    tensor = digits.images[:5]
    expected = predict(list(tensor.numpy()), checkpoint=trained)
    for images in (tensor, tensor.numpy(), tensor[:, None], tensor.numpy() / 255, iter(tensor)):
        assert predict(images, checkpoint=trained) == expected
    assert predict(tensor[:0], checkpoint=trained) == []
    bold = tensor.numpy() > 127
    assert predict(bold, checkpoint=trained) == predict(bold * 255, checkpoint=trained)


def test_the_keywords_are_the_options() -> None:
    options = {field.name for field in dataclasses.fields(PredictOptions)} - {"crop", "keep_image"}
    assert options < set(inspect.signature(predict).parameters)


def test_records_hold_plain_values_that_add_up(trained: TrainedModel, digits: Split) -> None:
    (record,) = predict(digits.images.numpy()[3], checkpoint=trained, top_k=10)
    row = record.to_dict()
    assert list(row["top_k"][0]) == ["label", "class_name", "probability"]
    assert json.loads(json.dumps(row)) == row | {"box": list(row["box"])}
    assert sum(item["probability"] for item in row["top_k"]) == pytest.approx(1)
    assert row["top_k"][0]["label"] == row["label"]
    assert row["probability"] == row["top_k"][0]["probability"]
    assert row["class_name"] == str(row["label"])


def test_several_digits_are_counted_or_classified(trained: TrainedModel, digits: Split) -> None:
    tiles = [np.pad(image[:, 3:25], ((4, 4), (0, 8))) for image in digits.images.numpy()[:5]]
    row = Image.fromarray(255 - np.pad(np.concatenate(tiles, axis=1), 8))
    row = row.resize((row.width * 4, row.height * 4), Image.Resampling.BICUBIC)
    (single,) = predict(row, checkpoint=trained, multi=False)
    assert (single.status, single.reason) == ("rejected", "5 digits in 1 line")  # names no flag
    assert single.has_several
    records = predict(row, checkpoint=trained, keep_stages=True)
    assert records == predict(row, checkpoint=trained, multi=True)
    assert records.lines == [records.text]
    two = predict([row, row], checkpoint=trained)  # one record each, of equal content but rounding
    assert [(r.status, r.reason, r.label) for r in two] == [
        ("rejected", single.reason, single.label)
    ] * 2
    assert [(r.index, r.line, r.position) for r in records] == [(i, 0, i) for i in range(5)]
    right = sum(r.label == int(t) for r, t in zip(records, digits.labels[:5], strict=True))
    assert right >= 4
    inputs = np.hstack([np.asarray(r.pixels) for r in records])
    np.testing.assert_array_equal(records[0].stages["what the network reads"], inputs)


@pytest.mark.parametrize("multi", [False, True])
def test_more_ink_than_is_read_is_the_reason(
    multi: bool, trained: TrainedModel, digits: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = Image.fromarray(255 - np.hstack(list(digits.images.numpy()[:4]))).resize((448, 112))
    monkeypatch.setattr("mnist_ce.reader.text_lines.MAX_WORK", 2e5)
    (record,) = predict(row, checkpoint=trained, multi=multi)
    assert (record.status, record.reason) == ("rejected", CROWDED)


def test_every_image_has_records_whatever_it_holds(trained: TrainedModel, digits: Split) -> None:
    pair = Image.fromarray(255 - np.hstack(list(digits.images.numpy()[:2]))).resize((448, 224))
    blank = Image.new("LA", (99, 60), (0, 0))
    options = PredictOptions(multi=True, keep_image=True)
    results = predict_each([pair, blank, Path("gone.png")], trained, options)
    (several,), ((empty,),), ((gone,),) = results
    assert [record.index for record in several] == list(range(len(several)))
    assert len(several) > 1
    assert (gone.status, gone.reason, gone.image) == ("error", "gone.png does not exist", None)
    assert (empty.status, empty.label, empty.box) == ("rejected", None, None)
    assert "no ink found" in (empty.reason or "")
    assert several[0].image is not None
    assert empty.image is not None
    assert (several[0].image.size, empty.image.getpixel((0, 0))) == (pair.size, (255, 255, 255))


@st.composite
def lattices(draw: st.DrawFn) -> tuple[Lattice, dict[Digit, ScoredDigit]]:
    """A lattice in which every piece may be a digit, and some of the longer runs; with scores."""
    num_pieces = draw(st.integers(1, 6))
    scores, digits = {}, {}
    for start in range(num_pieces):
        for stop in range(start + 1, num_pieces + 1):
            if stop == start + 1 or draw(st.booleans()):
                mark, penalty = draw(st.sampled_from([None, "a dash"])), draw(st.floats(0, 5))
                digit = Digit(np.zeros((28, 28), np.uint8), penalty=penalty, mark=mark)
                confidence = draw(st.floats(-20, 0))
                scores[digit] = ScoredDigit(digit, [0], [1.0], 0.0, confidence)
                digits[start, stop] = digit
    return Lattice(num_pieces, digits), scores


@given(lattices())
@settings(deadline=None)
def test_the_best_path_is_that_of_all_paths(
    drawn: tuple[Lattice, dict[Digit, ScoredDigit]],
) -> None:
    lattice, scores = drawn

    def paths_from(start: int) -> Iterator[list[Digit]]:
        if start == lattice.num_pieces:
            yield []
        for (first, stop), digit in lattice.digits.items():
            if first == start:
                yield from ([digit, *rest] for rest in paths_from(stop))

    totals = [sum(scores[digit].plausibility for digit in path) for path in paths_from(0)]
    path = resolve_lattice(lattice, scores)
    assert [scored.candidate for scored in path] in list(paths_from(0))
    assert sum(scored.plausibility for scored in path) == pytest.approx(max(totals))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"box": Box(0, 0, 11, 6)}, "the digit is 11 pixels high: photograph it closer"),
        ({"box": Box(0, 0, 6, 11)}, "the digit is 11 pixels wide: photograph it closer"),
        ({"mark": "a point"}, "looks like a point, not a digit"),
        ({}, "looks like a letter, a sign or a scribble, not a digit"),
    ],
)
def test_a_rejection_says_why(trained: TrainedModel, change: dict[str, Any], reason: str) -> None:
    digit = Digit(np.full((28, 28), 200, np.uint8), **change)
    image = PreprocessedImage(None, [Hypothesis([[Lattice.of(digit)]])])
    ((record,),) = Predictor(trained, PredictOptions()).predict_batch([image])
    assert record.reason == reason


def test_among_digits_less_is_asked_of_a_probable_digit(trained: TrainedModel) -> None:
    images = list(generate(600, seed=7).images.numpy())
    alone = predict(images, checkpoint=trained)
    threshold = alone[0].threshold or 0.0
    odd = next(
        n
        for n, r in enumerate(alone)
        if r.status == "rejected"
        and (r.score or 0) > threshold - ROW_BONUS
        and (r.probability or 0) > 0.95
    )
    accepted = [n for n, record in enumerate(alone) if record.status == "ok"][:3]
    predictor = Predictor(trained, PredictOptions(multi=True))
    for others, status in ((accepted, "ok"), (accepted[:1], "rejected")):
        line = [Lattice.of(Digit(images[n])) for n in (*others, odd)]
        (records,) = predictor.predict_batch([PreprocessedImage(None, [Hypothesis([line])])])
        assert [r.status for r in records] == [*["ok"] * len(others), status]


def test_min_confidence_takes_the_place_of_the_score(trained: TrainedModel, digits: Split) -> None:
    images = list(digits.images.numpy()[:50])
    for limit in (0.0, 0.9):
        for record in predict(images, checkpoint=trained, min_confidence=limit):
            assert (record.status == "ok") == ((record.probability or 0) >= limit)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("top_k", 0, "top-k"),
        ("batch_size", 0, "batch_size"),
        ("min_confidence", 1.5, "min-confidence"),
        ("input_std", 0.0, "input-std"),
        ("input_std", 1e-45, "logits are not finite"),
        ("device", "tpu", "tpu"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    option: str, value: Any, message: str, trained: TrainedModel
) -> None:
    with pytest.raises(UsageError, match=message):
        predict(np.eye(28), checkpoint=trained, **{option: value})


def test_images_are_read_only_a_little_ahead(trained: TrainedModel, digits: Split) -> None:
    images, yielded = digits.images.numpy(), itertools.count()
    endless = (images[number % 100] for number in yielded)
    results = predict_each(endless, trained, PredictOptions(batch_size=8))
    for _ in range(20):
        next(results)
    assert next(yielded) <= 32


def test_other_data_sets_are_not_cropped(trained: TrainedModel) -> None:
    names = ("shirt", *trained.class_names[1:])
    clothes = replace(trained, record=RunRecord(dataset="fashion-mnist"), class_names=names)
    block = np.zeros((28, 28), np.uint8)
    block[:, 4:10] = 200
    (record,) = predict(block, checkpoint=clothes)
    assert record.status == "ok"
    np.testing.assert_array_equal(record.pixels, block)
