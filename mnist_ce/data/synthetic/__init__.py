"""Digits drawn by the program."""
