"""Optimisation steps: the plain one, and the fast one that must equal it."""

from mnist_ce.training.steps.base import NonFiniteLossError, OptimizerFactory, Step
from mnist_ce.training.steps.fast import FastStep
from mnist_ce.training.steps.plain import PlainStep

__all__ = ["FastStep", "NonFiniteLossError", "OptimizerFactory", "PlainStep", "Step"]
