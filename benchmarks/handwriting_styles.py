"""Accuracy on handwriting styles of many countries, style by style, as the reader predicts them.

    python -m benchmarks.handwriting_styles --count 150 --checkpoint world

The drawings are those of `generators/handwriting_styles.py`, a third by each pen; nothing was
trained or tuned on them. The last rows are the 1,797 digits of UCI's "Optical Recognition of
Handwritten Digits" by Turkish writers, 8×8 pixels each, which scikit-learn holds: enlarged
twelvefold and read, and fitted as MNIST fits its digits, without the reader, whose threshold closes
such blurred loops.
"Accuracy" counts labels, of rejected images too; "rejected" is the share of those.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits

from benchmarks.common import Format, argument_parser, percent, print_table
from generators import handwriting_styles
from mnist_ce.evaluation.metrics import expected_calibration_error
from mnist_ce.network.model import predict_logits
from mnist_ce.prediction.predict import predict
from mnist_ce.reader.mnist_format import fit_glyph
from mnist_ce.runs.load_model import TrainedModel, load_model

COLUMNS: dict[str, Format] = {
    "digits": str,
    "n": str,
    "accuracy": percent,
    "rejected": percent,
    "ECE": "{:.2%}".format,
}
ENLARGEMENT = 12


def uci_digits() -> tuple[list[Image.Image], list[int]]:
    """Return UCI's digits, bright on black with a margin, and their labels."""
    content = load_digits()
    images = []
    for pixels in np.pad(content.images, ((0, 0), (2, 2), (2, 2))):  # [12, 12], from 0 to 16
        image = Image.fromarray((pixels * (255 / 16)).astype(np.uint8))
        side = ENLARGEMENT * len(pixels)
        images.append(image.resize((side, side), Image.Resampling.BICUBIC))
    return images, content.target.tolist()


class Results:
    """Labels, confidences and rejections of some images."""

    def __init__(
        self, trained: TrainedModel, images: Sequence[Image.Image], labels: Sequence[int]
    ) -> None:
        records = predict(images, checkpoint=trained)
        pairs = zip(records, labels, strict=True)
        self.correct = np.array([record.label == label for record, label in pairs])
        self.confidence = np.array([record.probability or 0.0 for record in records])
        self.rejected = np.array([record.status != "ok" for record in records])

    def row(self, name: str, chosen: slice = slice(None)) -> tuple[object, ...]:
        """Return a row of the table."""
        correct, confidence = self.correct[chosen], self.confidence[chosen]
        error = expected_calibration_error(confidence, correct) if len(correct) > 1000 else None
        rejected = self.rejected[chosen].mean()
        return (name, len(correct), float(correct.mean()), float(rejected), error)


def main() -> None:
    """Draw, predict, and print a table."""
    parser = argument_parser(__doc__)
    parser.add_argument("--count", type=int, default=150, help="images per style")
    parser.add_argument("--checkpoint", default="world", help="run, file or shipped weights")
    options = parser.parse_args()
    torch.set_num_threads(1)
    trained = load_model(options.checkpoint)
    images, labels = [], []
    for number, style in enumerate(handwriting_styles.STYLES):
        for i in range(options.count):
            random = np.random.default_rng([number, i])
            images.append(
                handwriting_styles.draw(
                    style, handwriting_styles.PENS[i % len(handwriting_styles.PENS)], random
                )
            )
            labels.append(int(style[0]))
    results = Results(trained, images, labels)
    rows = [
        results.row(style, slice(number * options.count, (number + 1) * options.count))
        for number, style in enumerate(handwriting_styles.STYLES)
    ]
    if options.count % len(handwriting_styles.PENS) == 0:
        rows += [
            results.row(f"by {pen}", slice(i, None, 3))
            for i, pen in enumerate(handwriting_styles.PENS)
        ]
    rows += [results.row("all"), Results(trained, *uci_digits()).row("UCI, enlarged")]
    content = load_digits()
    fitted = np.stack([fit_glyph((pixels / 16).astype(np.float32)) for pixels in content.images])
    found = predict_logits(trained.model, torch.from_numpy(fitted)).argmax(dim=1).numpy()
    rows.append(("UCI, fitted", len(found), float((found == content.target).mean()), None, None))
    title = f"Digits in handwriting styles of many countries, checkpoint {options.checkpoint}"
    print_table(title, COLUMNS, rows, as_json=options.json)


if __name__ == "__main__":
    main()
