"""Scores of answers: mathematical equivalence, program tests, a judge's ratings, and metrics of classes and scores."""
