"""The configuration of a run: its sections, how they are read from YAML, and how they are checked."""

from balora.deprecation import deprecated_names

__getattr__ = deprecated_names(__name__, {"RegularizationConfig": "balora.regularization.RegularizationConfig"})
