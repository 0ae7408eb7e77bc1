"""Deprecated names, with their new modules."""

from balora.deprecation import deprecated_names

__getattr__ = deprecated_names(__name__, {"load": "balora.loading.trained.load"})
