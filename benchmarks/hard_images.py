"""Accuracy on hard images of digits, drawn by generator a (to tune on) or b (frozen).

    MNIST_CE_DATA_DIR=… python -m benchmarks.hard_images --generator b --count 200 --checkpoint RUN

Compares three ways to bring an image to 28×28: the reader; conversion to grey and resizing alone;
and the same, inverted where the image is bright. The digits are MNIST training images held out, so
the checkpoint should be trained without them: `mnist-ce train --config best --set
data.validation_size=5000`. "several" counts predictions of more than one digit, "rejected" those
of none.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.common import Format, argument_parser, held_out_split, percent, print_table
from generators import hard_images_a, hard_images_b
from mnist_ce.network.model import predict_logits
from mnist_ce.prediction.predict import predict
from mnist_ce.runs.load_model import load_model

LARGE = ("phone", "huge")  # several megapixels each: a fifth of the images
COLUMNS: dict[str, Format] = {
    "kind": str,
    "n": str,
    "reader": percent,
    "resized": percent,
    "resized, inverted": percent,
    "several": percent,
    "rejected": percent,
    "CPU ms": "{:.1f}".format,
}


def resize_only(image: Image.Image, invert_bright: bool) -> NDArray[np.uint8]:
    """Return the image as programs without preprocessing see it, uint8 [28, 28]."""
    if image.mode in ("RGBA", "LA"):
        image = image.convert("RGB")
    grey = np.asarray(image.convert("F"), dtype=np.float32)
    if image.mode.startswith(("I", "F")):
        grey = grey / max(float(grey.max()), 1e-6) * 255
    small = Image.fromarray(grey).resize((28, 28), Image.Resampling.BILINEAR)
    pixels = np.asarray(small).clip(0, 255).astype(np.uint8)
    return 255 - pixels if invert_bright and pixels.mean() > 127 else pixels


def main() -> None:
    """Draw the images, predict, and print a table."""
    parser = argument_parser(__doc__)
    parser.add_argument("--generator", choices=["a", "b"], default="b")
    parser.add_argument("--count", type=int, default=100, help="images per kind")
    parser.add_argument("--kinds", nargs="*", help="only these")
    parser.add_argument("--checkpoint", help="run or file; default: as for mnist-ce evaluate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep-failures", type=Path, help="folder for images predicted wrongly")
    options = parser.parse_args()
    torch.set_num_threads(1)
    generator = hard_images_a if options.generator == "a" else hard_images_b
    held_out = held_out_split()[1]
    digits, labels = held_out.images.numpy(), held_out.labels.numpy()
    trained = load_model(options.checkpoint)
    rows = []
    for number, (kind, draw) in enumerate(generator.KINDS.items()):
        if options.kinds and kind not in options.kinds:
            continue
        count = max(10, options.count // 5) if kind in LARGE else options.count
        chosen = (np.arange(count) + 211 * number) % len(digits)
        images = [draw(digits[i], np.random.default_rng([options.seed, number, i])) for i in chosen]
        targets = labels[chosen]
        start = time.process_time()
        predictions = predict(images, checkpoint=trained)
        milliseconds = 1000 * (time.process_time() - start) / count
        correct = np.array([p.label == t for p, t in zip(predictions, targets, strict=True)])
        if options.keep_failures:
            options.keep_failures.mkdir(parents=True, exist_ok=True)
            for i in np.flatnonzero(~correct):
                name = f"{kind}-{i}-{targets[i]}-{predictions[i].label}.png"
                images[i].convert("RGBA").save(options.keep_failures / name)
        accuracies = [float(correct.mean())]
        for invert in (False, True):
            small = torch.from_numpy(np.stack([resize_only(image, invert) for image in images]))
            labels_found = predict_logits(trained.model, small).argmax(1).numpy()
            accuracies.append(float((labels_found == targets).mean()))
        reasons = [p.reason or "" for p in predictions]
        several = float(np.mean([p.has_several for p in predictions]))
        rejected = float(np.mean(["look" in r or "no ink" in r for r in reasons]))
        rows.append((kind, count, *accuracies, several, rejected, milliseconds))
        print(f"{kind}: {accuracies[0]:.1%}", file=sys.stderr)
    means = [float(np.mean(column)) for column in list(zip(*rows, strict=True))[2:-1]]
    print_table(
        f"Hard images of generator {options.generator}, seed {options.seed}, "
        f"checkpoint {options.checkpoint or 'by default'}",
        COLUMNS,
        [*rows, ("mean", None, *means, None)],
        as_json=options.json,
    )


if __name__ == "__main__":
    main()
