"""Explanation: the arithmetic of a loss, for given numbers or for a picture and a network.

What is about pictures is in `explanation.picture`, which needs the network and the preprocessing.
"""

from __future__ import annotations

from mnist_ce.explain.loss_table import Explanation, Row
from mnist_ce.explain.numbers import explain_binary, explain_logits, explain_probabilities
from mnist_ce.explain.parsing import parse_rows, parse_targets

__all__ = [
    "Explanation",
    "Row",
    "explain_binary",
    "explain_logits",
    "explain_probabilities",
    "parse_rows",
    "parse_targets",
]
