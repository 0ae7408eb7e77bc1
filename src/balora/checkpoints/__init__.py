"""A run on disk: its directory, its checkpoints, its lock, its provenance and its model card."""
