"""balora: bias-alleviating low-rank fine-tuning for the Hugging Face ecosystem.

Reference: Chang et al., BA-LoRA: Bias-Alleviating Low-Rank Adaptation, ICLR 2026.
"""

import importlib
from typing import TYPE_CHECKING, Any

from balora.anchors import Anchors
from balora.errors import BALoraError
from balora.regularization import RegularizationConfig

if TYPE_CHECKING:
    from balora.auditing.audit import audit
    from balora.exporting.export import export
    from balora.loading.trained import load
    from balora.methods import adapt
    from balora.teacher.pretrained import PretrainedTeacher
    from balora.training.sft_trainer import BALoraSFTTrainer
    from balora.training.trainer import BALoraTrainer

__version__ = "0.1.0"

# Imported on first use: these modules import torch, and the upper ones datasets and trl as well.
_MODULES = {
    "audit": "balora.auditing.audit",
    "adapt": "balora.methods",
    "PretrainedTeacher": "balora.teacher.pretrained",
    "BALoraTrainer": "balora.training.trainer",
    "BALoraSFTTrainer": "balora.training.sft_trainer",
    "export": "balora.exporting.export",
    "load": "balora.loading.trained",
}
_SUBMODULES = ("evaluation", "experiments", "losses", "methods", "objective", "regularizers", "report", "training")

__all__ = [
    "Anchors",
    "BALoraError",
    "BALoraSFTTrainer",
    "BALoraTrainer",
    "PretrainedTeacher",
    "RegularizationConfig",
    "adapt",
    "audit",
    "export",
    "load",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"balora.{name}")
    raise AttributeError(f"module 'balora' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_SUBMODULES, "__version__"})
