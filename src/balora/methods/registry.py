"""Every fine-tuning method by name: what it is, where it comes from, what it trains, how it starts.

Adding one is one module with a `build` function and one `register` call in `balora.methods`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from balora.errors import BALoraError, suggest


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptOptions:
    """What every method is told, checked once in `balora.adapt`; a method reads what concerns it."""

    rank: int
    """r ≥ 1."""
    alpha: float
    """α > 0; the adapter's scaling is s = α / r."""
    dropout: float
    """Probability in [0, 1) on the adapter's input."""
    target_modules: str | list[str]
    """`all-linear`, one regular expression, or names of layers."""
    seed: int
    """Of the adapter's random start (LoRA's A, the sketch of a randomised SVD)."""
    extra: dict[str, Any]
    """The method's own options, already checked against `Method.options`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """One row of `balora methods`."""

    name: str
    summary: str
    """What it does, in one sentence."""
    paper: str
    trains: str
    """Which tensors learn, in words."""
    build: Callable[[PreTrainedModel, AdaptOptions], nn.Module]
    """Turns the pre-trained model into the one that is trained; may raise `BALoraError`."""
    low_rank: bool = True
    """Whether the change can be exported as a plain LoRA."""
    shifts_base: bool = False
    """Whether the start moves part of the frozen weights into the adapter, so that switching the adapter off is not
    the pre-trained model."""
    regularized: bool = False
    """Whether the regularizers are on unless the user says otherwise."""
    options: tuple[str, ...] = ()
    """Names of the method's own options."""


METHODS: dict[str, Method] = {}


def register(method: Method) -> Method:
    """Add a method to the registry; its name must be new."""
    assert method.name not in METHODS, f"method {method.name} is registered twice"
    METHODS[method.name] = method
    return method


def find_method(name: str) -> Method:
    """Look a method up by name.

    Raises:
        BALoraError: No method is called that; the nearest is named.
    """
    if name not in METHODS:
        raise BALoraError(
            f"There is no method {name!r}.{suggest(name, METHODS)} The methods are {', '.join(sorted(METHODS))}."
        )
    return METHODS[name]
