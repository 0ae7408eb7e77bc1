"""Losses: the regularizers in the form training uses, without logits and without the vocabulary's spectrum."""

from balora.losses.fused import generation_loss
from balora.losses.head import LinearHead
from balora.losses.parts import Parts
from balora.losses.plain import plain_generation_loss
from balora.losses.remembered import RememberedTeacher
from balora.losses.spectrum import SpectralBasis

__all__ = ["LinearHead", "Parts", "RememberedTeacher", "SpectralBasis", "generation_loss", "plain_generation_loss"]
