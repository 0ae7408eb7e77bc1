"""Variants that the experiments compare: methods by name, sets of regularizers, and weights of the regularizers.

C is consistency, D diversity, S spectral, V the variance hinge. The terms "as printed" act on the logits, and the teacher has a
random classification head; on two classes the spectral term is then constant (method.md, departures 3, 5 and
15). The form "ours" gives the teacher a fitted head, takes D and S on the pooled features, and can add the variance hinge.
"""

import dataclasses
from collections.abc import Mapping

from balora.experiments.compare import Variant

TERMS = {"C": "consistency", "D": "diversity", "S": "spectral"}
NO_TERMS = "none (PiSSA)"
LORA_RATE = "2.0e-3"
"""Learning rate of LoRA on MiniLM-L6, from the pilot on SST-2."""
DEFAULT_WEIGHTS = (0.025, 0.005, 0.005)
"""The paper's λ1, λ2, λ3 for generation."""
BALANCES = {"weak chaos": 0.1, "optimal": 0.5, "weak order": 0.9}
"""λ2 / (λ2 + λ3): the spectral term dominates, both are equal, diversity dominates."""
SUM_LABEL = ", λ2 + λ3 = "
"""Text between the balance and the sum of the weights in the name of a variant of figure 4 (b)."""
_OURS = ("teacher_head=probe", "diversity_target=features", "spectral_target=features")


def methods(*names: str, rates: Mapping[str, str] | None = None) -> list[Variant]:
    """Return methods by name; ``rates`` gives some of the names their own learning rate.

    Example:
        >>> methods("pissa", "lora", rates={"lora": "2e-3"})[1].overrides
        ('training.learning_rate=2e-3',)
    """
    variants = [Variant.parse(name) for name in names]
    return [at_rate(v, rates[v.name]) if rates and v.name in rates else v for v in variants]


def at_rate(variant: Variant, rate: str) -> Variant:
    """Return a variant with its own learning rate."""
    return dataclasses.replace(variant, overrides=(*variant.overrides, f"training.learning_rate={rate}"))


def printed(terms: str) -> Variant:
    """Return PiSSA with some of the paper's terms, as printed.

    Example:
        >>> printed("CD").overrides
        ('regularization.spectral=0',)
    """
    if not terms:
        return Variant(name=NO_TERMS, method="pissa", regularized=False)
    return _regularized("+".join(terms), *_off(terms))


def _off(terms: str) -> list[str]:
    return [f"{name}=0" for letter, name in TERMS.items() if letter not in terms]


def ours(terms: str, consistency: float | None = None) -> Variant:
    """Return PiSSA with terms in our form.

    The student starts from the fitted head too, which helps by itself: without terms this is the fitted head alone.

    Args:
        terms: Letters of the terms; V is the variance hinge, which VICReg combines with D.
        consistency: Weight of consistency; None is the paper's.
    """
    settings = [*_OURS, *_off(terms), *(["variance=0.03"] if "V" in terms else [])]
    name = f"ours: {'+'.join(terms) or 'none'}"
    if consistency is not None:
        name, settings = f"{name} (C {consistency:g})", [*settings, f"consistency={consistency}"]
    return _regularized(name, *settings)


def at_weights(name: str, *weights: float) -> Variant:
    """Return BA-LoRA with these weights of consistency, diversity and spectral."""
    settings = [f"{term}={weight:g}" for term, weight in zip(TERMS.values(), weights, strict=True)]
    return _regularized(name, *settings, method="balora")


def swept(consistency: float) -> Variant:
    """Return a point of figure 4 (a): λ1 changes, λ2 and λ3 are the paper's."""
    return at_weights(f"λ1 = {consistency:g}", consistency, *DEFAULT_WEIGHTS[1:])


def balanced(balance: str, total: float) -> Variant:
    """Return a point of figure 4 (b): λ2 and λ3 have a given balance and sum. The paper's own weights are a point of (a) too.

    Example:
        >>> balanced("weak chaos", 0.01).overrides[1:]
        ('regularization.diversity=0.001', 'regularization.spectral=0.009')
        >>> balanced("optimal", 0.01).name
        'λ1 = 0.025'
    """
    share, default = BALANCES[balance], swept(DEFAULT_WEIGHTS[0])
    weights = round(total * share, 12), round(total * (1 - share), 12)
    point = at_weights(f"{balance}{SUM_LABEL}{total:g}", DEFAULT_WEIGHTS[0], *weights)
    return default if point.overrides == default.overrides else point


def _regularized(name: str, *settings: str, method: str = "pissa") -> Variant:
    overrides = tuple(f"regularization.{setting}" for setting in settings)
    return Variant(name=name, method=method, regularized=True, overrides=overrides)


LORA_PISSA_BALORA = methods("lora", "pissa", "balora")
LORA_AT_RATE = methods("lora", "pissa", "balora", rates={"lora": LORA_RATE})
"""The three methods on MiniLM-L6, LoRA with its own learning rate."""
PRINTED = [printed(terms) for terms in ("", "C", "D", "S", "CD", "CS", "DS", "CDS")]
PRINTED_ALONE = [printed(terms) for terms in ("", "C", "D", "S", "CDS")]
FITTED_HEAD = ours("")
ALL_TERMS = ours("CDVS")
LORA_AT_RATE_AND_OURS = [*LORA_AT_RATE, FITTED_HEAD, ALL_TERMS]
OURS = [FITTED_HEAD, ours("C"), ours("DV"), ours("S"), ALL_TERMS, ours("C", consistency=1.0)]
TABLE2_OURS = _regularized("balora, ours", *_OURS, method="balora")
LORA_HEAD = dataclasses.replace(FITTED_HEAD, name="lora+head", method="lora")
PISSA_HEAD = dataclasses.replace(FITTED_HEAD, name="pissa+head")
PISSA_HEAD_TERMS = dataclasses.replace(ALL_TERMS, name="pissa+head+C+D+V+S")
