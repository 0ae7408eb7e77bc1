"""Deprecated names, with their new modules."""

from balora.deprecation import deprecated_names

__getattr__ = deprecated_names(
    __name__, {"export": "balora.exporting.export.export", "ExportReport": "balora.exporting.export.ExportReport"}
)
