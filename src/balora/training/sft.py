"""`BALoraSFTTrainer`: trl's SFTTrainer (chat templates, packing, padding-free, completion-only) with our objective."""

from __future__ import annotations

from trl import SFTTrainer

from balora.training.mixin import RegularizedMixin


class BALoraSFTTrainer(RegularizedMixin, SFTTrainer):
    """As `BALoraTrainer`, for what trl's SFTTrainer prepares.

    trl's own loss variants (``loss_type``) and its token-accuracy and entropy metrics are replaced by the parts.
    """
