"""Adapter layers, and the wrappers that put them into a model."""
