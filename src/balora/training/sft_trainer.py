"""`BALoraSFTTrainer`: trl's SFTTrainer (chat templates, packing, padding-free, completion-only) with our objective.

A separate module, because importing trl takes seconds and `BALoraTrainer` does not need it.
"""

from typing import Any

from torch import nn
from trl import SFTTrainer

from balora.training.trainer import RegularizedTrainerMixin


class _SFTTrainer(SFTTrainer):
    """trl's SFTTrainer without its rounding of a quantized model's adapter to bfloat16.

    A rounded adapter no longer has its initial values, and bfloat16 parameters lose small optimizer steps.
    """

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        trainable = [p for p in model.parameters() if p.requires_grad] if isinstance(model, nn.Module) else []
        unrounded = [p.data for p in trainable]
        super().__init__(model, *args, **kwargs)
        for parameter, values in zip(trainable, unrounded, strict=True):
            parameter.data = values.to(parameter.device)


class BALoraSFTTrainer(RegularizedTrainerMixin, _SFTTrainer):
    """`BALoraTrainer` with trl's SFTTrainer and its data preparation in place of transformers' Trainer.

    trl's own loss variants (``loss_type``) and its token-accuracy and entropy metrics are replaced by the parts.
    """
