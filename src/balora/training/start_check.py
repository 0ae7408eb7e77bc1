"""What the steps share: no terms at all, and what rounding may explain at the start."""

from __future__ import annotations

import torch
from torch import nn

NO_TERMS = {"consistency": 0.0, "diversity": 0.0, "spectral": 0.0, "variance": 0.0}


def rounding(model: nn.Module) -> float:
    """How far teacher and student may lie apart before the first step, in nats or squared units of the output."""
    half = any(p.dtype in (torch.bfloat16, torch.float16) for p in model.parameters())
    return 1e-4 if half else 1e-6
