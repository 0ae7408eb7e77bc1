"""What a run must be before its first step: adapters that act, and what rounding may explain between teacher and student."""

from __future__ import annotations

import logging

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from balora.errors import BALoraError

logger = logging.getLogger("balora")
NO_TERMS = {"consistency": 0.0, "diversity": 0.0, "spectral": 0.0, "variance": 0.0}


def rounding(model: nn.Module) -> float:
    """How far teacher and student may lie apart before the first step, in nats or squared units of the output."""
    half = any(p.dtype in (torch.bfloat16, torch.float16) for p in model.parameters())
    return 1e-4 if half else 1e-6


def refuse_idle_adapters(model: nn.Module) -> None:
    """Refuse adapters that are merged or switched off: no gradient would reach them, and teacher and student stay one.

    Raises:
        BALoraError: One is.
    """
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer) and (module.merged or module.disable_adapters):
            what, back = ("merged", "unmerge_adapter()") if module.merged else ("switched off", "enable_adapters()")
            raise BALoraError(f"The adapter of {name} is {what}, so nothing of it would learn. Call {back} first.")


def warn_of_anothers_adapter(model: nn.Module) -> None:
    """Say what "pre-trained" means for an adapter that `balora.adapt` did not make and that may have learnt before."""
    if any(".lora_B." in name and parameter.any() for name, parameter in model.named_parameters()):
        logger.warning(
            "The adapter was not made by balora.adapt and its B is not 0: the teacher is the model as it stands now. If the "
            "adapter was trained before, the consistency holds to that, not to the pre-trained model; merge it and adapt anew "
            "to have the pre-trained one."
        )
