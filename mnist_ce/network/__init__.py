"""The network, its objectives and its inference."""

INPUT_SIZE = 28 * 28
HIDDEN = (520, 320, 240, 120)
