"""Deprecated names, with their new modules."""

from balora.deprecation import deprecated_names

__getattr__ = deprecated_names(
    __name__,
    {"RunSettings": "balora.config.run_config.RunConfig", "load_settings": "balora.config.run_config.load_run_config"},
)
