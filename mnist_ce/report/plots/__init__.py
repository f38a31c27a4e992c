"""Plots of a run, each a function from arrays to the bytes of a PNG file."""
