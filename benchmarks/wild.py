"""Accuracy on hard pictures made from digits: `wild_a`, to tune on, and `wild_b`, frozen.

MNIST_CE_DATA_DIR=… python benchmarks/wild.py [--generator b] [--count 100] [--checkpoint FILE]

Three ways to bring a picture to 28×28 are compared: ours; the picture made grey and resized,
without any of it; and the same inverted where it is bright, as most programs do. The digits are
training images of MNIST set aside (see `pictures`): give a checkpoint trained without them, with
`mnist-ce train --config best --set data.validation_size=5000`. "Several" is how often ours says
that there is more than one digit, and "rejected" how often it says that there is none.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
import wild_a
import wild_b
from pictures import training_images

from mnist_ce.config import resolve_config
from mnist_ce.evaluation.inference import predict_logits
from mnist_ce.reader.predict import predict
from mnist_ce.runs.load_model import load_model

SLOW = ("phone", "huge")  # kinds of several megapixels: a fifth of the pictures


def shrunk(picture: Image.Image, invert_bright: bool) -> np.ndarray:
    """The picture at 28×28, uint8, as programs without any preprocessing see it."""
    if picture.mode in ("RGBA", "LA"):
        picture = picture.convert("RGB")
    grey = np.asarray(picture.convert("F"), dtype=np.float32)
    if picture.mode.startswith(("I", "F")):
        grey = grey / max(float(grey.max()), 1e-6) * 255
    small = Image.fromarray(grey).resize((28, 28), Image.Resampling.BILINEAR)
    pixels = np.asarray(small).clip(0, 255).astype(np.uint8)
    return 255 - pixels if invert_bright and pixels.mean() > 127 else pixels


def main() -> None:
    """Make the pictures, ask the network, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", default=resolve_config().data.dir, type=Path)
    parser.add_argument("--generator", choices=["a", "b"], default="b")
    parser.add_argument("--count", type=int, default=100, help="pictures per kind")
    parser.add_argument("--kinds", nargs="*", help="only these")
    parser.add_argument("--checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--keep-failures", type=Path, help="folder for the pictures got wrong")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    generator = wild_a if arguments.generator == "a" else wild_b
    _, images, labels = training_images(arguments.data_dir)
    trained = load_model(arguments.checkpoint)
    rows = []
    for number, (name, kind) in enumerate(generator.KINDS.items()):
        if arguments.kinds and name not in arguments.kinds:
            continue
        count = max(10, arguments.count // 5) if name in SLOW else arguments.count
        chosen = (np.arange(count) + 211 * number) % len(images)
        pictures = [
            kind(images[i], np.random.default_rng([arguments.seed, number, i])) for i in chosen
        ]
        truth = labels[chosen]
        began = time.process_time()
        records = predict(pictures, checkpoint=trained)
        seconds = (time.process_time() - began) / count
        right = np.array([r.label == t for r, t in zip(records, truth, strict=True)])
        if arguments.keep_failures:
            arguments.keep_failures.mkdir(parents=True, exist_ok=True)
            for i in np.flatnonzero(~right):
                path = arguments.keep_failures / f"{name}-{i}-{truth[i]}-{records[i].label}.png"
                pictures[i].convert("RGBA").save(path)
        others = []
        for invert in (False, True):
            small = torch.from_numpy(np.stack([shrunk(p, invert) for p in pictures]))
            answers = predict_logits(trained.model, small).argmax(1).numpy()
            others.append(float((answers == truth).mean()))
        reasons = [r.reason or "" for r in records]
        rows.append(
            {
                "kind": name,
                "pictures": count,
                "accuracy": float(right.mean()),
                "resized": others[0],
                "resized_inverted": others[1],
                "several": float(np.mean(["digits found" in r for r in reasons])),
                "rejected": float(np.mean(["look" in r or "no ink" in r for r in reasons])),
                "milliseconds": seconds * 1000,
            }
        )
        print(f"{name}: {right.mean():.1%}", file=sys.stderr)
    means = {
        key: float(np.mean([row[key] for row in rows]))
        for key in ("accuracy", "resized", "resized_inverted", "several", "rejected")
    }
    if arguments.json:
        print(
            json.dumps({"generator": arguments.generator, "kinds": rows, "mean": means}, indent=2)
        )
        return
    print("| kind | ours | resized | resized, inverted | several | rejected | CPU ms |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for row in [*rows, {"kind": "mean", "milliseconds": 0.0, **means}]:
        print(
            f"| {row['kind']} | {row['accuracy']:.1%} | {row['resized']:.1%} | "
            f"{row['resized_inverted']:.1%} | {row['several']:.1%} | {row['rejected']:.1%} | "
            f"{row['milliseconds']:.1f} |"
        )


if __name__ == "__main__":
    main()
