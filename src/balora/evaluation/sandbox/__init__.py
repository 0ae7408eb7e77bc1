"""Run programs that a model wrote, confined."""

from balora.evaluation.sandbox.sandbox import Limits, Sandbox

__all__ = ["Limits", "Sandbox"]
