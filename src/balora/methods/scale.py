"""Checks of a scale a in W + a·ΔW, without an import of torch; `balora.methods.scaling` does the work."""

from __future__ import annotations

import math
from typing import Any

from balora.errors import BALoraError
from balora.methods.method import Method


def check_scale(scale: Any, method: Method | None = None) -> float:
    """Return a scale as a number; refuse one that is not finite, or a method whose change has no multiples.

    Example:
        >>> check_scale(0.5)
        0.5
    """
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
        raise BALoraError(f"scale is a finite number, such as 0.5, not {scale!r}.")
    if scale != 1 and method is not None:
        if not method.mergeable:
            raise BALoraError(
                f"Method {method.name} adds layers with an activation between them, so its change is no difference of weights "
                "that could be scaled. Leave scale at 1."
            )
        if method.name == "dora":
            raise BALoraError(
                "Method dora also trains the norms of the weights' rows, so a multiple of its change is not of its own form. "
                "Leave scale at 1."
            )
    return float(scale)


def scale_notice(scale: float) -> str | None:
    """Return a sentence about a scale that is not between the pre-trained and the trained model; None for one that is."""
    if 0 < scale <= 1:
        return None
    if scale == 0:
        return "At scale 0 nothing of the change is left: this is the pre-trained model."
    where = "beyond the trained model" if scale > 1 else "in the direction opposite to the training"
    return f"Scale {scale:g} is outside 0 to 1: the model lies {where}, where nothing was trained or measured."
