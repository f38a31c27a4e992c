"""A run, from a config to its files."""
