"""Anchors in training: where they come from, their term of the loss, and budgets for the drift."""
