"""Any picture of a digit → the 28×28 image that MNIST would have made of it.

The morphology is scipy.ndimage's: it is a dependency already, imports in a tenth of a second, and
has what is needed (closing, labels, exact distances). OpenCV would be faster on large pictures, at
the price of sixty megabytes; scikit-image builds on scipy.ndimage and imports more slowly.
"""

from __future__ import annotations

from mnist_ce.reader.expand_paths import find_pictures
from mnist_ce.reader.image_io import Picture, open_picture
from mnist_ce.reader.montage import draw_strip
from mnist_ce.reader.pool import Options, Prepared, Workers, prepare
from mnist_ce.reader.segmentation import Digit, Reading, Stages, find_digits

__all__ = [
    "Digit",
    "Options",
    "Picture",
    "Prepared",
    "Reading",
    "Stages",
    "Workers",
    "draw_strip",
    "find_digits",
    "find_pictures",
    "open_picture",
    "prepare",
]
