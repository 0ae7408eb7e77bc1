"""A batch and a head, for the fused and the reference form of the generation loss."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from balora.losses import LinearHead, LossParts, generation_loss, reference_generation_loss

WEIGHTS = {"consistency": 0.7, "diversity": 0.3, "spectral": 0.9}
SETTINGS = {"temperature": 2.0, "top_k": 7, "spectral_rank": 3}


@dataclass
class Case:
    """A batch and a head; odd sizes on purpose."""

    tokens: int = 23
    hidden: int = 12
    vocabulary: int = 203
    dtype: torch.dtype = torch.float64
    bias: bool = False
    logit_scale: float = 1.0
    softcap: float | None = None
    trained: bool = False
    ignored: slice = field(default_factory=lambda: slice(None, None, 5))
    seed: int = 0

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(self.dtype)

        self.hidden_MD = normal(self.tokens, self.hidden).requires_grad_()
        self.teacher_MD = (self.hidden_MD + 0.3 * normal(self.tokens, self.hidden)).detach()
        self.head_VD = (0.5 * normal(self.vocabulary, self.hidden)).requires_grad_(self.trained)
        self.bias_V = normal(self.vocabulary).requires_grad_(self.trained) if self.bias else None
        self.teacher_head_VD = (self.head_VD + 0.1 * normal(self.vocabulary, self.hidden)).detach()
        self.teacher_bias_V = None if self.bias_V is None else (self.bias_V + 0.1 * normal(self.vocabulary)).detach()
        self.labels_M = torch.randint(0, self.vocabulary, (self.tokens,), generator=generator)
        self.labels_M[self.ignored] = -100

    def to(self, device: str) -> Case:
        """Move all tensors to a device."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.detach().to(device).requires_grad_(value.requires_grad))
        return self

    @property
    def trained_tensors(self) -> list[Tensor]:
        return [t for t in (self.hidden_MD, self.head_VD, self.bias_V) if t is not None and t.requires_grad]

    def fused(self, **options) -> LossParts:
        own = {"teacher_head_VD": self.teacher_head_VD, "teacher_bias_V": self.teacher_bias_V} if self.trained else {}
        return generation_loss(
            self.hidden_MD,
            self.labels_M,
            self.head_VD,
            self.teacher_MD,
            bias_V=self.bias_V,
            logit_scale=self.logit_scale,
            softcap=self.softcap,
            **{**WEIGHTS, **SETTINGS, **own, **options},
        )

    def reference(self, **options) -> LossParts:
        student = LinearHead(self.head_VD, self.bias_V, self.logit_scale, self.softcap).logits(self.hidden_MD)
        head = (self.teacher_head_VD, self.teacher_bias_V) if self.trained else (self.head_VD, self.bias_V)
        teacher = LinearHead(*head, self.logit_scale, self.softcap).logits(self.teacher_MD)
        return reference_generation_loss(student, self.labels_M, teacher, **{**WEIGHTS, **SETTINGS, **options})

    def gradients(self, parts: LossParts) -> list[Tensor]:
        return list(torch.autograd.grad(parts.loss, self.trained_tensors))


def assert_same(case: Case, fused: LossParts, reference: LossParts, rtol: float = 1e-9, atol: float = 1e-12) -> None:
    for name in ("loss", "task", "consistency", "diversity", "spectral"):
        one, other = getattr(fused, name), getattr(reference, name)
        assert (one is None) == (other is None), name
        if one is not None:
            torch.testing.assert_close(one, other, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")
    for one, other in zip(case.gradients(fused), case.gradients(reference), strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol)


def errors(case: Case, low: torch.dtype, **fused) -> tuple[float, float]:
    """Errors of the fused and the reference form in a low dtype, in value and gradient, against float64."""
    low_case = Case(**{**_vars_of(case), "dtype": low})
    gold = Case(**_vars_of(case))
    for name in ("hidden_MD", "teacher_MD", "head_VD", "teacher_head_VD", "bias_V", "teacher_bias_V"):
        tensor = getattr(low_case, name)
        if tensor is not None:
            setattr(gold, name, tensor.detach().double().requires_grad_(tensor.requires_grad))
    truth = gold.gradients(gold.reference())
    distances = []
    for parts in (low_case.fused(**fused), low_case.reference()):
        assert parts.loss.dtype == torch.float32
        values = abs(float(parts.loss.detach()) - float(gold.reference().loss.detach()))
        found = low_case.gradients(parts)
        distances.append(
            values + sum(float((g.double() - t).norm() / t.norm()) for g, t in zip(found, truth, strict=True))
        )
    return distances[0], distances[1]


def _vars_of(case: Case) -> dict:
    return {name: getattr(case, name) for name in Case.__dataclass_fields__}


HEADS = {
    "linear": {},
    "bias": {"bias": True},
    "scale": {"logit_scale": 0.3},
    "negative scale": {"logit_scale": -1.7, "bias": True},
    "softcap": {"softcap": 2.0},
    "softcap, scale, bias": {"softcap": 3.0, "logit_scale": 0.5, "bias": True},
    "trained": {"trained": True},
    "trained, bias, scale": {"trained": True, "bias": True, "logit_scale": 2.0},
    "trained, softcap, bias": {"trained": True, "softcap": 2.0, "bias": True},
}
