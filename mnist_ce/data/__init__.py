"""Datasets and their files, synthetic digits, batches, and distortions."""
