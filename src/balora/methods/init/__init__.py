"""Initial values of the adapters, computed from the weights or from training data."""
