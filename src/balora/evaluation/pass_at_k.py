"""Deprecated: the functions are in `balora.evaluation.scoring.pass_at_k`."""

from balora.deprecation import deprecated_names

__getattr__ = deprecated_names(
    __name__, {name: f"balora.evaluation.scoring.pass_at_k.{name}" for name in ("mean_pass_at_k", "pass_at_k")}
)
