"""The config of a run: its sections, the YAML reader, and the checks."""

from balora.deprecation import deprecated_names

__getattr__ = deprecated_names(__name__, {"RegularizationConfig": "balora.regularization.RegularizationConfig"})
