"""Deprecated public names, which keep working for one version and warn with the new name."""

import functools
import importlib
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def deprecated_names(module: str, renamed: dict[str, str]) -> Callable[[str], Any]:
    """Make a module-level ``__getattr__`` for renamed or moved names.

    Args:
        module: ``__name__`` of the module with the old names.
        renamed: Full path of each new name, by old name.

    Example:
        >>> __getattr__ = deprecated_names("balora.old", {"suggestion": "balora.errors.suggest"})
        >>> __getattr__("unknown")
        Traceback (most recent call last):
            ...
        AttributeError: module 'balora.old' has no attribute 'unknown'
    """

    def __getattr__(name: str) -> Any:
        if name not in renamed:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        new_module, _, new_name = renamed[name].rpartition(".")
        warnings.warn(f"{module}.{name} is now {renamed[name]}.", DeprecationWarning, stacklevel=2)
        return getattr(importlib.import_module(new_module), new_name)

    return __getattr__


def deprecated_keywords(**renamed: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a decorator for a function whose keyword arguments have new names: the old ones still work, with a warning.

    Args:
        renamed: New name, by old name.

    Example:
        >>> @deprecated_keywords(top="top_k")
        ... def count(top_k):
        ...     return top_k
        >>> count(top_k=3)
        3
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            for old, new in renamed.items():
                if old in kwargs:
                    warnings.warn(
                        f"{function.__qualname__}: the argument {old} is now {new}.", DeprecationWarning, stacklevel=2
                    )
                    kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call

    return decorate
