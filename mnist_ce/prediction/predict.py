"""Predictions for images: segment → hypotheses → classify → choose."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import chain, compress, groupby, islice, pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeAlias, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mnist_ce.data.address import images_at, parse_address
from mnist_ce.network.model import kept_in_place, predict_logits
from mnist_ce.reader.geometry import Box
from mnist_ce.reader.image_io import ImageSource, each_image, holds_images
from mnist_ce.reader.mnist_format import adjusted_threshold, load_detector
from mnist_ce.reader.page import project
from mnist_ce.reader.pool import PreprocessedImage, PreprocessOptions, PreprocessPool, shared_pool
from mnist_ce.reader.segmentation import CROWDED, Hypothesis, Stages
from mnist_ce.reader.text_lines import Digit, Lattice
from mnist_ce.runs.load_model import NetworkOptions, TrainedModel, load_model
from mnist_ce.runs.run_dir import shipped_weights
from mnist_ce.system.device import resolve_device
from mnist_ce.system.errors import UsageError
from mnist_ce.system.notebook import MAX_IMAGES, Shown
from mnist_ce.system.text import certainty, percent_hint

DEFAULT_WEIGHTS = "world"  # reads photographs better than a run of the classic recipe
ImageLike: TypeAlias = ImageSource | BinaryIO | torch.Tensor
OTHER_PENALTY, MARK_PENALTY = 3.0, 1.0  # nats, for ink that is taken for no digit, or for a mark
# Nats by which a probable digit's score may be below the threshold among accepted digits.
ROW_BONUS, MIN_ROW_PROBABILITY, MIN_ROW_LENGTH, MIN_ROW_QUALITY = 2.0, 0.9, 3, 0.6
MIN_LEGIBLE_PX, MIN_LEGIBLE_CONTRAST = 14, 0.12  # below them a rejection names the cause
# A gap between two numbers: in digit heights, and from middle to middle in the image's usual ones.
# Of simulated rows 0.1 % get a blank too many, of rows in boxes 0.1 %; 70 % of the gaps between
# groups of digits that are 0.5 to 2 heights wider than within them get theirs.
MIN_BLANK, MIN_BLANK_PITCHES = 0.7, 1.5
NO_INK = "no ink found: the image is empty, or its contrast too low"
CONFIDENCE_WEIGHT = 2.0  # of the network's log-confidence beside the segmentation's log-score


@dataclass(frozen=True, kw_only=True)
class PredictOptions(PreprocessOptions):
    """How images are preprocessed and classified: see `predict`; `crop` is the network's choice."""

    multi: bool | None = None  # every digit; None: where there are several
    top_k: int = 3
    min_confidence: float | None = None
    device: str = "cpu"
    batch_size: int = 256

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise UsageError(f"--top-k = {self.top_k}: must be at least 1")
        if self.batch_size < 1:
            raise UsageError(f"batch_size = {self.batch_size}: must be at least 1")
        if self.min_confidence is not None and not 0 <= self.min_confidence <= 1:
            hint = percent_hint(self.min_confidence)
            raise UsageError(f"--min-confidence = {self.min_confidence}: must be from 0 to 1{hint}")


@dataclass(frozen=True)
class ClassProbability:
    """A class and how probable it is."""

    label: int
    class_name: str
    probability: float


@dataclass(frozen=True, kw_only=True, repr=False)
class Prediction(Shown):
    """The prediction for one digit, or the record of an image without one: the label is None."""

    path: str | None  # None where the image came as bytes, image or array
    index: int = 0  # the digit's place in its image, from the left, counted from 0
    label: int | None = None
    class_name: str | None = None
    probability: float | None = None  # of the label, as a fraction
    top_k: tuple[ClassProbability, ...] = ()  # the most probable classes, in order
    status: str  # ok, rejected (no single digit is visible) or error
    reason: str | None = None  # why it was rejected or failed
    score: float | None = None  # log-odds that it is a digit, or the probability (min_confidence)
    threshold: float | None = None  # a lower score is rejected
    box: tuple[int, int, int, int] | None = None  # x, y, width, height in pixels, upright image
    line: int | None = None  # the text line, from the top, counted from 0
    position: int | None = None  # the place in the line, from the left, counted from 0
    text: str | None = None  # the whole line; ? for what was not read
    page: int | None = None  # from 1; None, and not in JSON, where the image has one alone
    rotation: int = 0  # degrees counterclockwise that it was turned by; not in JSON where 0
    # Not in JSON:
    has_several: bool = field(default=False, repr=False)  # digits, of which one was wanted
    reading: str = field(default="?", repr=False)  # the text, with wide gaps as blanks
    truth: str | None = field(default=None, repr=False)  # its class, where it is of a dataset
    # The network's input, [28, 28]; its whole image after each stage; and decoded, RGB.
    pixels: NDArray[np.uint8] | None = field(default=None, repr=False, compare=False)
    stages: Stages = field(default_factory=dict, repr=False, compare=False)
    image: Image.Image | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        row = {f.name: getattr(self, f.name) for f in fields(self) if f.repr}
        row["top_k"] = [asdict(item) for item in self.top_k]
        for name in ("page", "rotation"):
            if not row[name]:
                del row[name]
        return row

    def headline(self) -> str:
        read = f"{self.status}, {self.reason}"
        if self.status == "ok":
            read = f"{self.class_name} ({certainty(self.probability or 0.0)})"
        return f"{self.path}: {read}" if self.path else read

    def table(self) -> list[tuple[str, str]]:
        rows = [(k.class_name, certainty(k.probability)) for k in self.top_k]
        return [("class", "probability"), *rows] if rows else []

    def shown_images(self) -> list[tuple[NDArray[np.uint8], str]]:
        return [] if self.pixels is None else [(self.pixels, self.class_name or "")]


class Predictions(list[Prediction], Shown):
    """The records of one image or several, in order."""

    @property
    def lines(self) -> list[str]:
        """Each text line as it reads: wide gaps as blanks, `?` for what was not read."""
        return [record.reading for record in self if not record.position]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def headline(self) -> str:
        return " / ".join(self.lines[:MAX_IMAGES])

    def shown_images(self) -> Iterator[tuple[NDArray[np.uint8], str]]:
        for record in self[:MAX_IMAGES]:
            for pixels, _ in record.shown_images():
                yield pixels, record.headline().removeprefix(f"{record.path}: ")


def predict(
    images: ImageLike | Iterable[ImageLike],
    *,
    checkpoint: str | Path | TrainedModel | None = None,
    output: str | Path = "checkpoints",
    data_dir: str | Path | None = None,
    top_k: int = 3,
    multi: bool | None = None,
    min_confidence: float | None = None,
    device: str = "cpu",
    batch_size: int = 256,
    keep_stages: bool = False,
    **network: Unpack[NetworkOptions],
) -> Predictions:
    """Return a record for each page of each image, in order, or for each digit: see `multi`.

    Args:
        images: An image or an iterable of images: a path, the address of images of a dataset
            (`mnist:test[9729]`, `csv:test.csv`), the bytes of a file, a binary file object, a
            Pillow image, or an array or tensor [height, width] or [height, width, 1, 3 or 4] of
            pixels 0 to 255, or of bool or floats in [0, 1]. An array [n, 28, 28] or [n, 784] is n
            images.
        checkpoint: See `load_model`, but None without a `model` is the shipped `world`.
        output: The folder of the runs.
        data_dir: The folder of the datasets; None: `MNIST_CE_DATA_DIR`, or `data`.
        top_k: How many of the most probable classes each record lists.
        multi: Read every digit, line by line, from left to right. False: several are a reason to
            reject the image, which has one record. None: as True for a single image that has
            several, as False for those of an iterable, so that each has one record.
        min_confidence: Rejects by probability instead of by likeness to a digit.
        device: See `resolve_device`.
        batch_size: How many images are classified at a time.
        keep_stages: Keep the image after each stage of preprocessing in the records.
        network: See `load_model`.

    Raises:
        CheckpointError: If the network cannot be loaded.
        TypeError: If an image is of another type. One that cannot be read gets a record.
        UsageError: If a setting makes no sense.
    """
    limits: dict[str, Any] = {
        "top_k": top_k,
        "min_confidence": min_confidence,
        "batch_size": batch_size,
    }
    if multi is None and holds_images(images):
        multi = False
    options = PredictOptions(multi=multi, device=device, keep_stages=keep_stages, **limits)
    if checkpoint is None and network.get("model") is None:
        checkpoint = shipped_weights(DEFAULT_WEIGHTS)
    trained = load_model(checkpoint, output, **network)
    with kept_in_place(trained.model):
        found: Iterable[ImageSource | PreprocessedImage] = chain.from_iterable(
            images_at(address, data_dir) if (address := parse_address(one)) else [one]
            for one in each_image(images)
        )
        pages = chain.from_iterable(predict_each(found, trained, options))
        return Predictions(chain.from_iterable(pages))


def predict_each(
    images: Iterable[ImageSource | PreprocessedImage],
    trained: TrainedModel,
    options: PredictOptions,
    pool: PreprocessPool | None = None,
) -> Iterator[list[Predictions]]:
    """Yield the records of each image's pages."""
    predictor, pool = Predictor(trained, options), pool or shared_pool()
    limits = predictor.preprocess_options
    preprocessed: Iterator[list[PreprocessedImage]] = chain.from_iterable(
        ([one] for one in group) if is_ready else pool.preprocess_all(group, limits)  # type: ignore
        for is_ready, group in groupby(images, lambda one: isinstance(one, PreprocessedImage))
    )
    while batch := list(islice(preprocessed, options.batch_size)):
        records = iter(predictor.predict_batch([*chain.from_iterable(batch)]))
        files = [list(islice(records, len(pages))) for pages in batch]
        is_again = [any(map(predictor.must_reread, file)) for file in files]
        sources = [pages[0].source for pages in compress(batch, is_again)]
        reread = predict_each(sources, trained, replace(options, multi=True), pool)
        for file, again in zip(files, is_again, strict=True):
            path = file[0][0].path
            if again:
                file = [Predictions(replace(r, path=path) for r in page) for page in next(reread)]
            yield file


class ScoredDigit(NamedTuple):
    """A digit, with the network's most probable classes and the detector's log-odds."""

    candidate: Digit
    classes: list[int]  # the most probable first, as are their probabilities
    probabilities: list[float]
    log_odds: float
    log_confidence: float  # that it is a digit, and the most probable one

    @property
    def plausibility(self) -> float:
        """How plausible it is as a part of its line, in nats: as a digit, or else as no digit."""
        if self.candidate.mark is not None:
            return -MARK_PENALTY
        return max(self.log_confidence, -OTHER_PENALTY) - self.candidate.penalty


Scores: TypeAlias = Mapping[Digit, ScoredDigit]


@dataclass(frozen=True)
class ResolvedHypothesis:
    """A hypothesis with one digit after another in each line, and how plausible it is."""

    hypothesis: Hypothesis
    lines: list[list[ScoredDigit]]
    score: float
    quality: float  # in [0, 1]: how much of the ink looks like writing
    is_writing: bool = False  # whether most of several parts are digits
    several: str | None = None  # how many digits there are, where one was wanted

    @property
    def stages(self) -> Stages:
        if not self.hypothesis.stages:
            return {}
        rows = [np.hstack([digit.candidate.pixels for digit in line]) for line in self.lines]
        width = max(row.shape[1] for row in rows)
        inputs = np.vstack([np.pad(row, ((0, 0), (0, width - row.shape[1]))) for row in rows])
        return self.hypothesis.stages | {"what the network reads": inputs}


class Predictor:
    """Network and detector, which score all candidates of a batch of images, and their choice."""

    def __init__(self, trained: TrainedModel, options: PredictOptions) -> None:
        self.trained, self.options = trained, options
        self.device = resolve_device(options.device)
        self.model, self.reads_digits = trained.model.to(self.device), trained.reads_digits
        self.classes = list(zip(trained.labels, trained.class_names, strict=True))
        threshold = trained.rejection_threshold
        self.threshold = load_detector().threshold if threshold is None else threshold
        self.preprocess_options = PreprocessOptions(  # which processes can read without torch
            self.reads_digits, bool(options.multi), options.keep_stages, options.keep_image
        )

    def must_reread(self, records: Predictions) -> bool:
        """Whether an image is to be predicted again, with `multi`: see `PredictOptions`."""
        return self.options.multi is None and records[0].has_several

    def predict_batch(self, images: Sequence[PreprocessedImage]) -> list[Predictions]:
        """Return the records of each image, after one run of the models on all digits."""
        hypotheses = [hypothesis for image in images for hypothesis in image.hypotheses]
        lattices = [x for h in hypotheses for line in (*h.lines, *h.all_lines) for x in line]
        scores = self.score([digit for lattice in lattices for digit in lattice.digits.values()])
        return [self.records_of(image, scores) for image in images]

    def score(self, digits: Sequence[Digit]) -> Scores:
        if not digits:
            return {}
        pixels = np.stack([digit.pixels for digit in digits])  # [n, 28, 28]
        scale = {"mean": self.trained.input_mean, "std": self.trained.input_std}
        inputs = torch.from_numpy(pixels).to(self.device)
        logits = predict_logits(self.model, inputs, **scale)  # [n, outputs]
        if not torch.isfinite(logits).all():
            raise UsageError(
                "the network's logits are not finite: do --input-mean and --input-std fit it?"
            )
        scaled = logits.double() / self.trained.temperature
        p = self.trained.objective.probabilities(scaled).numpy()  # [n, classes]
        order = np.argsort(-p, axis=1, kind="stable")[:, : self.options.top_k]
        p = np.take_along_axis(p, order, axis=1)  # → [n, top_k]
        detected = load_detector().scores(pixels) if self.reads_digits else np.ones(len(pixels))
        log_odds = detected.astype(np.float64)
        confidence = np.log(p[:, 0]) - np.logaddexp(0, -log_odds)
        columns = [column.tolist() for column in (order, p, log_odds, confidence)]
        scored = map(ScoredDigit, digits, *columns)
        return dict(zip(digits, scored, strict=True))

    def records_of(self, image: PreprocessedImage, scores: Scores) -> Predictions:
        """Return the records of an image: of the digits of its most plausible hypothesis."""
        common: dict[str, Any] = {"path": image.path, "page": image.page, "image": image.image}
        common["truth"] = image.truth
        if image.error is not None:
            return Predictions([Prediction(**common, status="error", reason=image.error)])
        if not image.hypotheses:
            common |= {"stages": image.stages, "reason": NO_INK}
            return Predictions([Prediction(**common, status="rejected")])
        resolved = [self.resolve(hypothesis, scores) for hypothesis in image.hypotheses]
        best = max(resolved, key=lambda hypothesis: hypothesis.score)
        common |= {"stages": best.stages, "has_several": best.several is not None}
        common["rotation"] = best.hypothesis.rotation
        records = Predictions()
        before = blanks([[digit.candidate.box for digit in line] for line in best.lines])
        for number, line in enumerate(best.lines):
            judged = [self.judge(digit, best) for digit in line]
            letters = [
                self.classes[digit.classes[0]][1] or "?" if reason is None else "?"
                for digit, (*_, reason) in zip(line, judged, strict=True)
            ]
            reading = "".join(chain.from_iterable(zip(before[number], letters, strict=True)))
            common |= {"line": number, "text": "".join(letters), "reading": reading}
            for position, (digit, judgement) in enumerate(zip(line, judged, strict=True)):
                score, threshold, reason = judgement
                classes = [self.classes[place] for place in digit.classes]
                box = project(digit.candidate.box, best.hypothesis.to_image)
                record = Prediction(
                    **common,
                    status="ok" if reason is None else "rejected",
                    index=len(records),
                    label=classes[0][0],
                    class_name=classes[0][1],
                    probability=digit.probabilities[0],
                    top_k=tuple(
                        ClassProbability(*one, p)
                        for one, p in zip(classes, digit.probabilities, strict=True)
                    ),
                    reason=reason,
                    score=score,
                    threshold=threshold,
                    box=(box.left, box.top, box.width, box.height),
                    position=position,
                    pixels=digit.candidate.pixels,
                )
                records.append(record)
        return records

    def resolve(self, hypothesis: Hypothesis, scores: Scores) -> ResolvedHypothesis:
        lines = _resolve_lines(hypothesis.lines, scores)
        quality, is_writing, surplus = hypothesis.foreground_quality, False, 0
        several = None
        if self.options.multi:
            parts = [digit for line in lines for digit in line if digit.candidate.mark is None]
            num_accepted = self.num_accepted(parts)
            # The more is read, and the less is not, the better.
            surplus = num_accepted - (len(parts) - num_accepted)
            if len(parts) > 1:  # among writing a digit may look odd, among specks it may not
                quality = num_accepted / len(parts)
                is_writing = len(parts) >= MIN_ROW_LENGTH and quality >= MIN_ROW_QUALITY
            # A line of specks is no line, unless the image holds nothing else.
            lines = [line for line in lines if any(d.candidate.mark is None for d in line)] or lines
        else:  # the best candidate as one digit, and how many there are
            counts = list(map(self.num_accepted, _resolve_lines(hypothesis.all_lines, scores)))
            if sum(counts) > 1:
                num_lines = sum(count > 0 for count in counts)
                several = f"{sum(counts)} digits in {num_lines} line{'s' * (num_lines > 1)}"
            elif len(lines[0]) > 1:  # they touch
                several = f"{len(lines[0])} digits in 1 line"
            lines = [[scores[hypothesis.lines[0][0].whole]]]
        confidence = statistics.fmean(digit.log_confidence for line in lines for digit in line)
        score = CONFIDENCE_WEIGHT * confidence + math.log(hypothesis.segmentation_score) + surplus
        return ResolvedHypothesis(hypothesis, lines, score, quality, is_writing, several)

    def num_accepted(self, digits: list[ScoredDigit]) -> int:
        return sum(d.candidate.mark is None and d.log_odds >= self.threshold for d in digits)

    def judge(
        self, digit: ScoredDigit, chosen: ResolvedHypothesis
    ) -> tuple[float, float | None, str | None]:
        """Return a digit's score, the threshold for it, and why it is rejected, or None."""
        probability, limit = digit.probabilities[0], self.options.min_confidence
        score, threshold, reason = probability, limit, None
        if limit is not None:
            if probability < limit:
                # Rounded down, so that it is below the threshold as printed, too.
                rounded = int(probability * 1000) / 1000
                reason = f"probability {rounded:.3f} is below {limit:g}"
        elif self.reads_digits:
            score, threshold = digit.log_odds, adjusted_threshold(self.threshold, chosen.quality)
            if chosen.is_writing and probability >= MIN_ROW_PROBABILITY:
                threshold -= ROW_BONUS
            if digit.candidate.mark is not None or score < threshold:
                reason = self.why_unlike_a_digit(digit, chosen.hypothesis)
        if chosen.hypothesis.is_crowded:
            reason = CROWDED
        return score, threshold, chosen.several or reason

    def why_unlike_a_digit(self, digit: ScoredDigit, hypothesis: Hypothesis) -> str:
        if digit.candidate.mark is not None:
            return f"looks like {digit.candidate.mark}, not a digit"
        box = project(digit.candidate.box, hypothesis.to_image)
        if box.size < MIN_LEGIBLE_PX:
            extent = "high" if box.height >= box.width else "wide"
            return f"the digit is {box.size} pixels {extent}: photograph it closer"
        if hypothesis.contrast < MIN_LEGIBLE_CONTRAST:
            return "the ink hardly differs from the paper: use a darker pen or more light"
        if digit.log_odds >= self.threshold:
            return "its edges are soft, or much else is beside it: crop the image to the digit"
        return "looks like a letter, a sign or a scribble, not a digit"


def blanks(lines: Sequence[Sequence[Box]]) -> list[list[str]]:
    """Return what is to stand before each digit of each line: a blank at a wide gap, or nothing."""

    def pitch(a: Box, b: Box) -> int:  # twice the distance of their middles
        return b.left + b.right - a.left - a.right

    pairs = [list(pairwise(line)) for line in lines]
    pitches = [pitch(*pair) for line in pairs for pair in line] or [0]
    min_gap = MIN_BLANK * statistics.median(box.height for line in lines for box in line)
    min_pitch = MIN_BLANK_PITCHES * statistics.median_low(pitches)
    wide = [[b.left - a.right > min_gap and pitch(a, b) > min_pitch for a, b in p] for p in pairs]
    return [["", *(" " * is_wide for is_wide in line)] for line in wide]


def _resolve_lines(lines: list[list[Lattice]], scores: Scores) -> list[list[ScoredDigit]]:
    return [[d for lattice in line for d in resolve_lattice(lattice, scores)] for line in lines]


def resolve_lattice(lattice: Lattice, scores: Scores) -> list[ScoredDigit]:
    """Return the path through a lattice of the highest total plausibility (Viterbi)."""
    best: list[tuple[float, list[ScoredDigit]]] = [(0.0, [])]  # by the piece a path ends before
    for stop in range(1, lattice.num_pieces + 1):
        paths = [
            (best[start][0] + scores[digit].plausibility, [*best[start][1], scores[digit]])
            for start in range(stop)
            if (digit := lattice.digits.get((start, stop))) is not None
        ]
        best.append(max(paths, key=lambda path: path[0]))
    return best[-1][1]
