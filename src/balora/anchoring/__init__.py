"""Anchors at work: their rows, the pre-trained model's outputs on them, and the weight that follows a budget."""

from balora.anchoring.budget import BudgetWeight
from balora.anchoring.rows import AnchorRows
from balora.anchoring.sampling import sample_sequences

__all__ = ["AnchorRows", "BudgetWeight", "sample_sequences"]
