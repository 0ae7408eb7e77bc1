"""Measuring a model: GLUE, mathematics, programs, conversation, and the tasks of lm-evaluation-harness."""

from balora.evaluation.evaluate import Evaluation, evaluate
from balora.evaluation.options import EvaluationOptions, JudgeOptions

__all__ = ["Evaluation", "EvaluationOptions", "JudgeOptions", "evaluate"]
