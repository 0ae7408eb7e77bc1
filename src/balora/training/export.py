"""Deprecated names of this module's former content, and their new places."""

from balora.deprecation import deprecated_names

__getattr__ = deprecated_names(
    __name__, {"export": "balora.exporting.export.export", "ExportReport": "balora.exporting.export.ExportReport"}
)
