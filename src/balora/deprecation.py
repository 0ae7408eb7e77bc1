"""Old public names: they keep working for one version and say what to write instead."""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def deprecated_names(module: str, renamed: dict[str, str]) -> Callable[[str], Any]:
    """Make a module-level ``__getattr__`` for names that have moved.

    Args:
        module: ``__name__`` of the module that had the names.
        renamed: Full path of the new name, by old name.

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
        home, _, attribute = renamed[name].rpartition(".")
        warnings.warn(f"{module}.{name} is now {renamed[name]}.", DeprecationWarning, stacklevel=2)
        return getattr(importlib.import_module(home), attribute)

    return __getattr__


def deprecated_keywords(**renamed: str) -> Callable[[F], F]:
    """Make a decorator that accepts the old names of keyword arguments, with a warning.

    Args:
        renamed: New name by old name.

    Example:
        >>> @deprecated_keywords(colour="color")
        ... def paint(color): return color
        >>> paint(color="red")
        'red'
    """

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            for old in renamed.keys() & kwargs.keys():
                message = f"{function.__name__}: the argument {old} is now called {renamed[old]}."
                warnings.warn(message, DeprecationWarning, stacklevel=2)
                kwargs[renamed[old]] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call  # type: ignore[return-value]

    return decorate
