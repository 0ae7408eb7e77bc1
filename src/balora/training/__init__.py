"""Training: the regularized trainers, their train steps, and `run`, which trains from a config to a run directory."""
