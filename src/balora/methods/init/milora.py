"""MiLoRA: start the adapter from the *minor* singular components, freeze the principal part.

Shapes: O output features, I input features, R adapter rank.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from balora.methods.init.residual_init import start_from_weights
from balora.methods.registry import AdaptOptions


def start_milora(model: nn.Module, options: AdaptOptions) -> None:
    """Move the minor components of every target into its factors."""
    start_from_weights(model, minor, options.seed)


def minor(weight_OI: Tensor, rank: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    r"""The part of a matrix along its R smallest singular values, as two factors.

    .. math:: B = U_{-r:} S_{-r:}^{1/2}, \quad A = S_{-r:}^{1/2} V_{-r:}^\top

    Always exact: the smallest values are what a randomised decomposition does not see.

    Args:
        weight_OI: W.
        rank: R.
        seed: Not used.

    Returns:
        (A: R × I, B: O × R), float32.

    Reference: Wang et al., MiLoRA, 2024, eq. 4-6.
    """
    left, values, right = torch.linalg.svd(weight_OI, full_matrices=False)
    root_R = values[-rank:].sqrt()
    return root_R[:, None] * right[-rank:], left[:, -rank:] * root_R
