"""Fine-tuning methods by name. Importing this package imports neither torch nor peft nor transformers."""

import importlib
from typing import TYPE_CHECKING, Any

from balora.methods.method import AdaptOptions, Method
from balora.methods.registry import METHODS, find_method, register

if TYPE_CHECKING:
    from balora.methods.adaptation import adapt, load_trainable

__all__ = ["METHODS", "AdaptOptions", "Method", "adapt", "find_method", "load_trainable", "register"]


def __getattr__(name: str) -> Any:
    if name in ("adapt", "load_trainable"):
        return getattr(importlib.import_module("balora.methods.adaptation"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
