"""From any image of digits to candidates of 28×28 pixels; NumPy, SciPy and Pillow alone."""
