"""`BALoraSFTTrainer`: trl's SFTTrainer (chat templates, packing, padding-free, completion-only) with our objective."""

from __future__ import annotations

from typing import Any

from torch import nn
from trl import SFTTrainer

from balora.training.mixin import RegularizedMixin


class _SFTTrainer(SFTTrainer):
    """trl's, which rounds the adapter of a quantized model to bfloat16: such factors are not those the model started from,
    and take no small step.
    """

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        learnt = [p for p in model.parameters() if p.requires_grad] if isinstance(model, nn.Module) else []
        kept = [(p, p.data) for p in learnt]
        super().__init__(model, *args, **kwargs)
        for parameter, values in kept:
            parameter.data = values.to(parameter.device)


class BALoraSFTTrainer(RegularizedMixin, _SFTTrainer):
    """As `BALoraTrainer`, for what trl's SFTTrainer prepares.

    trl's own loss variants (``loss_type``) and its token-accuracy and entropy metrics are replaced by the parts.
    """
