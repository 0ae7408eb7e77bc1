"""Predict what a run will need before it starts: memory, steps, and everything that would stop it."""
