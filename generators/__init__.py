"""Generators of hard digit images, kept as data: not linted, not type-checked.

`hard_images_a` is the set to tune the reader on (and part of the detector's training data).
`hard_images_b` only measures; `tests/test_benchmarks.py` pins the digest of its source.
Each has `KINDS`, a dictionary of functions (digit uint8 [28, 28], rng) → Pillow image.
"""
