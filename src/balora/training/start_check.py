"""What a run must be before its first step: adapters that act, and what rounding may explain between teacher and student."""

from __future__ import annotations

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from balora.errors import BALoraError

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
