"""Predict what a run will need before it starts: memory, steps, and whatever would stop it."""
