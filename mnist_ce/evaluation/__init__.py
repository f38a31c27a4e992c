"""Inference and the figures made from it."""
