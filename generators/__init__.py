"""Generators of digit images, apart from those that `mnist_ce` draws itself.

The hard images are kept as data: not linted, not type-checked. `hard_images_a` is the set to tune
the reader on (and part of the detector's training data); `hard_images_b` only measures, as
`handwriting_styles` does: digits as people of many countries write them. The digests of these two
sources are pinned in `tests/test_benchmarks.py`. Each of the hard ones has `KINDS`, a dictionary of
functions (digit uint8 [28, 28], rng) → Pillow image.
"""
