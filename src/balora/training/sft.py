"""Deprecated: see the names below for the new place."""

from balora.deprecation import deprecated_names

__getattr__ = deprecated_names(
    __name__,
    {
        "BALoraSFTTrainer": "balora.training.sft_trainer.BALoraSFTTrainer",
    },
)
