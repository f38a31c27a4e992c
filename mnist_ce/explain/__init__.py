"""The loss by its formulas, for given numbers and for an image."""
