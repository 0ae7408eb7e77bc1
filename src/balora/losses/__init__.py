"""Losses in the form that training uses: without logits, and without an SVD over the vocabulary."""

from balora.deprecation import deprecated_names
from balora.losses.anchor import anchor_loss
from balora.losses.generation import generation_loss
from balora.losses.loss_parts import HiddenStates, Logits, LossParts, LossTerms
from balora.losses.reference import reference_generation_loss
from balora.losses.spectral import SpectralBasis
from balora.losses.topk_teacher import TopKTeacher
from balora.models.lm_head import LinearHead

__getattr__ = deprecated_names(
    __name__,
    {
        "Parts": "balora.losses.LossParts",
        "RememberedTeacher": "balora.losses.TopKTeacher",
        "plain_generation_loss": "balora.losses.reference_generation_loss",
    },
)

__all__ = [
    "HiddenStates",
    "LinearHead",
    "Logits",
    "LossParts",
    "LossTerms",
    "SpectralBasis",
    "TopKTeacher",
    "anchor_loss",
    "generation_loss",
    "reference_generation_loss",
]
