"""What happens inside a network for one image: stages, activations, attribution and loss."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mnist_ce.explain.image import explain_record
from mnist_ce.prediction.predict import Prediction
from mnist_ce.reader.mnist_format import scale_image
from mnist_ce.runs.load_model import TrainedModel

STAGE_SIDE_PX = 140


def inspect_image(
    trained: TrainedModel, records: list[Prediction], target: str | None, index: int
) -> dict[str, Any]:
    """Return the records of an image as plain values, with all that led to one of them.

    `explanation` is None where there is no digit to explain; its loss is that of the class named
    `target`, None for the predicted one. `index` is the digit's place among the records.

    Raises:
        UsageError: If the target is not one of the network's classes.
    """
    record = records[min(index, len(records) - 1)]
    explained = None if record.pixels is None else explain_record(trained, record, target)
    layers = [] if explained is None else explained.activations
    return {
        "records": [record.to_dict() for record in records],
        "stages": {name: png_url(pixels) for name, pixels in records[0].stages.items()},
        "activations": [layer.astype(float).round(3).tolist() for layer in layers],
        "explanation": None if explained is None else explained.to_dict(),
    }


def png_url(pixels: NDArray[np.generic]) -> str:
    """Return an image [h, w], uint8 or in [0, 1], as a small PNG in a `data:` address."""
    if pixels.dtype != np.uint8:
        pixels = (pixels.astype(np.float32) * 255).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(pixels)
    if max(image.size) > STAGE_SIDE_PX:
        image = scale_image(image, STAGE_SIDE_PX / max(image.size))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
