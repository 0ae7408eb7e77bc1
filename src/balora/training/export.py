"""Deprecated: see the names below for the new place."""

from balora.deprecation import deprecated_names

__getattr__ = deprecated_names(
    __name__,
    {
        "export": "balora.exporting.export.export",
        "ExportReport": "balora.exporting.export.ExportReport",
    },
)
