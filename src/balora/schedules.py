"""Schedules of the terms' weights over training (method.md, Schedules). Progress t is step / total steps, from 0 to 1."""

import math

from balora.errors import BALoraError, suggest

SCHEDULES = ("constant", "cosine", "two_phase", "linear_warmup", "quadratic_warmup")


def schedule_weight(
    name: str, base_weight: float, progress: float, *, warmup: float = 0.2, ramp: float = 0.05
) -> float:
    r"""Return a term's weight at a point of training.

    With λ the base weight and t the progress:

    - ``constant``: λ throughout.
    - ``cosine``: ``0.1 λ + 0.9 λ · ½(1 + cos πt)``, from λ down to a tenth.
    - ``two_phase``: 0 while t < ``warmup``, then linearly up over the next ``ramp``, then λ.
    - ``linear_warmup``: ``λ · min(1, t / warmup)``.
    - ``quadratic_warmup``: ``λ · min(1, t / warmup)²``.

    Args:
        name: One of :data:`SCHEDULES`.
        base_weight: λ, the weight at full strength.
        progress: t. A value outside [0, 1] counts as the nearer end, so a step past the last one is harmless.
        warmup: Fraction of training before full strength (before the ramp, in ``two_phase``). 0 means none.
        ramp: Fraction of training that the ramp of ``two_phase`` takes. 0 means a jump.

    Returns:
        The weight, between 0 and ``base_weight``.

    Raises:
        BALoraError: The name is unknown, the progress is not a number, or ``warmup`` or ``ramp`` is not in [0, 1].

    Example:
        >>> [schedule_weight("two_phase", 0.4, t) for t in (0.1, 0.225, 0.5)]
        [0.0, 0.2, 0.4]

    Reference: Chang et al., BA-LoRA, ICLR 2026, appendix B.
    """
    if name not in SCHEDULES:
        raise BALoraError(f"There is no schedule {name!r}: {', '.join(SCHEDULES)}.{suggest(name, SCHEDULES)}")
    if math.isnan(progress):
        raise BALoraError("The schedule's progress must be a number from 0 to 1, and it is nan.")
    for setting, value in (("warmup", warmup), ("ramp", ramp)):
        if not 0.0 <= value <= 1.0:
            raise BALoraError(
                f"The schedule's {setting} must be a fraction of training, from 0 to 1, and it is {value}."
            )

    t = min(max(progress, 0.0), 1.0)
    if name == "cosine":
        return base_weight * (0.1 + 0.9 * 0.5 * (1.0 + math.cos(math.pi * t)))
    if name == "two_phase":
        return base_weight * (_ramp(t - warmup, ramp) if t >= warmup else 0.0)
    if name == "linear_warmup":
        return base_weight * _ramp(t, warmup)
    if name == "quadratic_warmup":
        return base_weight * _ramp(t, warmup) ** 2
    return base_weight


def _ramp(elapsed: float, length: float) -> float:
    """Rise linearly from 0 to 1 over ``length``; with a length of 0 return 1."""
    return min(1.0, elapsed / length) if length > 0 else 1.0
