"""Explanation: the arithmetic of a loss, for given numbers or for a picture and a network.

What is about pictures is in `explanation.picture`, which needs the network and the preprocessing.
"""

from __future__ import annotations

from mnist_ce.explanation.given import parse_rows, parse_targets
from mnist_ce.explanation.numbers import explain_binary, explain_logits, explain_probabilities
from mnist_ce.explanation.result import Explanation, Row

__all__ = [
    "Explanation",
    "Row",
    "explain_binary",
    "explain_logits",
    "explain_probabilities",
    "parse_rows",
    "parse_targets",
]
