"""Settings of the objective: weights, schedules and targets of the regularizers, checked on construction.

The paper's values are in `RegularizationConfig.for_generation` (eq. 12, section 3.1, appendix B.4) and
`RegularizationConfig.for_classification` (eq. 8, section 3.1). If the paper does not give a value, the field says so.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

from balora.errors import raise_all, shown, suggest
from balora.schedules import SCHEDULES

_CHOICES = {
    "consistency_schedule": SCHEDULES,
    "focus_schedule": SCHEDULES,
    "teacher_head": ("initial", "probe"),
    "diversity_target": ("logits", "features"),
    "spectral_target": ("logits", "features"),
    "batch_statistics": ("local", "global"),
    "task_loss": ("nll", "dft"),
    "consistency_tokens": ("all", "non_target"),
}
_LARGEST = 2**31 - 1
WEIGHTS = ("consistency", "diversity", "spectral", "variance")
Requirement = tuple[str, Callable[[Any], bool]]


def _is_number(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) <= sys.float_info.max


def _at_least(least: int) -> Requirement:
    return f"a whole number of at least {least}", lambda value: type(value) is int and least <= value <= _LARGEST


def _one_of(known: Collection[str]) -> Requirement:
    return f"one of {', '.join(known)}", lambda value: isinstance(value, str) and value in known


_FRACTION: Requirement = ("a fraction of training, from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1)
_REQUIREMENTS: dict[str, Requirement] = {
    **dict.fromkeys(WEIGHTS, ("a number of at least 0", lambda value: _is_number(value) and value >= 0)),
    "consistency_budget": (
        "a number of nats per token above 0",
        lambda value: value is None or (_is_number(value) and value > 0),
    ),
    "temperature": ("above 0", lambda value: _is_number(value) and value > 0),
    "top_k": _at_least(2),
    "spectral_rank": _at_least(1),
    "consistency_every": _at_least(1),
    "consistency_fraction": ("above 0 and at most 1", lambda value: _is_number(value) and 0 < value <= 1),
    "focus_warmup": _FRACTION,
    "focus_ramp": _FRACTION,
    **{name: _one_of(known) for name, known in _CHOICES.items()},
}
"""Requirement of each field, in words and as a test."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegularizationConfig:
    """Weights, schedules and targets of the three regularizers and of the variance hinge.

    The constructor's defaults are the paper's values for generation. A weight of 0 switches its term off, at no cost.

    Raises:
        BALoraError: One or more values are out of range; the message names all of them.

    Example:
        >>> RegularizationConfig.for_classification().spectral_rank
        5

    Reference: Chang et al., BA-LoRA, ICLR 2026, eq. 4-12 and appendix B.4.
    """

    consistency: float = 0.025
    """λ1 ≥ 0: weight of the KL divergence from the pre-trained model (eq. 4 and 9; for regression the squared error)."""
    diversity: float = 0.005
    """λ2 ≥ 0: weight of the covariance (classification, eq. 5) or of the top-K negative entropy (generation, eq. 10)."""
    spectral: float = 0.005
    """λ3 ≥ 0: weight of the negative spectral ratio (eq. 7 and 11)."""
    variance: float = 0.0
    """Classification: weight ≥ 0 of VICReg's variance hinge on the diversity target. Not in the paper; see method.md."""
    temperature: float = 2.0
    """T > 0 of the consistency term. The paper gives 2.0 for generation and none for classification; balora uses 2.0 for both."""
    top_k: int = 20
    """K ≥ 2: the entropy of eq. 10 is taken over the K likeliest tokens. Clipped to the vocabulary."""
    spectral_rank: int = 10
    """k ≥ 1 leading singular values of eq. 7 and 11. If k ≥ min(N, D), eq. 7 is constant; if k ≥ D, the term is switched off."""
    consistency_schedule: str = "cosine"
    """Schedule of λ1; appendix B.4 says cosine (down to a tenth)."""
    focus_schedule: str = "two_phase"
    """Schedule of λ2, λ3 and the variance weight; appendix B.4 says two_phase."""
    focus_warmup: float = 0.2
    """Fraction of training, in [0, 1]: two_phase is 0 during it, the two warm-up schedules rise over it."""
    focus_ramp: float = 0.05
    """Fraction of training, in [0, 1], over which two_phase rises to full weight after the warm-up."""
    consistency_every: int = 1
    """n ≥ 1: take the consistency term, with its teacher forward, at random in one of n steps, with n times the weight.

    Not in the paper. The expected gradient is unchanged, its variance is not; see cost.md."""
    consistency_fraction: float = 1.0
    """f in (0, 1]: take the consistency term over a random fraction f of the sequences, with 1 / f of the weight.

    Not in the paper. The expected gradient is unchanged, its variance is not; see cost.md."""
    consistency_budget: float | None = None
    """Drift in nats per token that the consistency term may reach; its weight starts at `consistency` and follows the budget.

    Not in the paper. The weight has no schedule then. Drift is the value of the term itself: at temperature 1 it is the KL
    divergence per target; for regression the squared difference. None for the scheduled weight."""
    consistency_tokens: Literal["all", "non_target"] = "all"
    """`non_target` compares both models without the target, the rest renormalised, so that the term does not oppose the task.

    Not in the paper; arXiv 2605.29498. Generation only."""
    task_loss: Literal["nll", "dft"] = "nll"
    """Loss of a target: `nll`, or `dft`: times the target's probability, a constant (Wu et al., 2025). Generation only.

    Not in the paper; method dft uses it, and method asft with a consistency term (Zhu et al., 2025)."""
    teacher_head: str = "initial"
    """Classification: `initial` takes the newly initialised head as teacher (the paper's reading); `probe` fits it first."""
    diversity_target: str = "logits"
    """Classification: take the covariance of the `logits` (N × D, the paper's) or of the pooled `features` (N × d)."""
    spectral_target: str = "logits"
    """Classification: take the spectral ratio of the `logits` (N × D, the paper's) or of the pooled `features` (N × d)."""
    batch_statistics: Literal["local", "global"] = "local"
    """Rows that covariance, variance and spectrum are computed from: each device's micro-batch, or those of all devices.

    With `global` they equal those of a single device that has all rows of the step. On one device both are the same. The
    paper does not say which it means; see method.md."""

    def __post_init__(self) -> None:
        problems = []
        for name, (requirement, fits) in _REQUIREMENTS.items():
            value = getattr(self, name)
            if not fits(value):
                hint = suggest(str(value), _CHOICES.get(name, ())) if isinstance(value, str) else ""
                requirement = f"at most {_LARGEST:,}" if type(value) is int and value > _LARGEST else requirement
                requirement = (
                    "a finite number" if isinstance(value, float) and not math.isfinite(value) else requirement
                )
                problems.append(f"regularization.{name} must be {requirement}, not {shown(value)}.{hint}")
        if self.consistency_budget is not None and self.consistency == 0:
            problems.append("regularization.consistency_budget needs a weight to start from: set consistency above 0.")
        raise_all(problems, "The regularization settings cannot be used")

    @classmethod
    def for_generation(cls, **changes: Any) -> RegularizationConfig:
        """Return the paper's values for causal and sequence-to-sequence generation (LLaMA-2-7B), with ``changes`` applied.

        Reference: section 3.1 and appendix B.4.
        """
        return cls.from_dict(changes)

    @classmethod
    def for_classification(cls, **changes: Any) -> RegularizationConfig:
        """Return the paper's values for classification and regression (GLUE), with ``changes`` applied.

        λ = (0.15, 0.03, 0.03) and k = 5 are from section 3.1. It gives no schedule for these tasks: both are constant.
        """
        paper = {
            "consistency": 0.15,
            "diversity": 0.03,
            "spectral": 0.03,
            "spectral_rank": 5,
            "consistency_schedule": "constant",
            "focus_schedule": "constant",
        }
        return cls.from_dict({**paper, **changes})

    @classmethod
    def off(cls) -> RegularizationConfig:
        """Return settings with all weights 0: the fine-tuning method alone."""
        return cls(consistency=0.0, diversity=0.0, spectral=0.0)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RegularizationConfig:
        """Build from a mapping; for an unknown key the error names the nearest known one.

        Raises:
            BALoraError: A key is unknown or a value out of range.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = [key for key in values if key not in known]
        raise_all(
            [f"Unknown key regularization.{key}.{suggest(key, known)}" for key in unknown],
            "The regularization settings cannot be used",
        )
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain values, for YAML and JSON; `from_dict` reads them."""
        return dataclasses.asdict(self)

    @classmethod
    def of_objective(cls, objective: Mapping[str, Any]) -> RegularizationConfig:
        """Return the settings of a method's own objective (`dft`, `asft`): all terms are off that it does not name."""
        return cls(**{**dict.fromkeys(WEIGHTS, 0.0), **objective})

    @property
    def active(self) -> bool:
        """True if any term has a weight above 0."""
        return any(getattr(self, name) > 0 for name in WEIGHTS)
