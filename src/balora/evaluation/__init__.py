"""Evaluation of a model: GLUE, mathematics, programs, conversation, and the tasks of lm-evaluation-harness.

Importing this package does not import torch, so that `balora evaluate MODEL --tasks list` answers quickly.
"""

from balora.evaluation.evaluate import Evaluation, evaluate
from balora.evaluation.options import EvaluationOptions, JudgeOptions

__all__ = ["Evaluation", "EvaluationOptions", "JudgeOptions", "evaluate"]
