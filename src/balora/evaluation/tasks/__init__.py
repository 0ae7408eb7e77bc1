"""Evaluation tasks: each reads its rows, asks the model and scores the answers."""
