"""From any image of digits to predictions: segmentation, MNIST's format, classification."""
