"""Scores of answers: mathematical equivalence, programs, judges, class and regression scores."""
