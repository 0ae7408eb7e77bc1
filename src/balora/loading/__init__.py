"""Load pre-trained models and trained runs."""
