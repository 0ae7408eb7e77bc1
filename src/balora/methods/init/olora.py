"""OLoRA: start the adapter from a QR decomposition, B orthonormal.

Shapes: O output features, I input features, R adapter rank.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from balora.methods.layers.weight_views import matrices
from balora.methods.registry import AdaptOptions


@torch.no_grad()
def start_olora(model: nn.Module, options: AdaptOptions) -> None:
    r"""Set B₀ and A₀ to the first R columns of Q and rows of R, and freeze the rest.

    .. math:: W = QR, \quad B_0 = Q_{:r}, \quad A_0 = R_{:r}, \quad W_{res} = W - s B_0 A_0

    Unlike PiSSA's, these factors are not divided by the scaling: B₀ is to have orthonormal columns.

    Args:
        model: Wrapped.
        options: Not read.

    Reference: Büyükakyüz, OLoRA, 2024, section 3.
    """
    for matrix in matrices(model):
        weight_OI: Tensor = matrix.weight_OI.float()
        q, r = torch.linalg.qr(weight_OI)
        matrix.set_factors(r[: matrix.rank], q[:, : matrix.rank])
        matrix.shift(weight_OI)
