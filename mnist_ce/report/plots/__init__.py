"""Plots of a run, each a function from arrays to the bytes of a PNG file.

matplotlib is imported when the first plot is drawn. Only its `Figure` and Agg canvas are used, so
that nothing global changes and no display is needed.
"""
