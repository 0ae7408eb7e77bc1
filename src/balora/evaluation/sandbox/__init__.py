"""Sandbox for programs that a model wrote."""

from balora.evaluation.sandbox.sandbox import Limits, Sandbox

__all__ = ["Limits", "Sandbox"]
