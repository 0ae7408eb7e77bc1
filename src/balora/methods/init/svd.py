"""Leading singular triplets of a weight matrix, exact or randomised, in float32 on the matrix's device.

Shapes: O rows, I columns, R triplets, P sketch size (R plus oversampling).
"""

import torch
from torch import Tensor

EXACT_BELOW = 1024
"""Smaller side up to which ``auto`` is exact. The full decomposition of such a matrix takes well under a second."""


def truncated_svd(
    matrix_OI: Tensor,
    rank: int,
    *,
    method: str = "auto",
    iterations: int = 6,
    oversampling: int | None = None,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the ``rank`` largest singular triplets: U (O × R), S (descending) and Vᵀ (R × I), float32.

    Args:
        matrix_OI: A real matrix, any floating dtype.
        rank: R, from 1 to min(O, I).
        method: ``exact``, ``randomized``, or ``auto``: exact for a small matrix or a large rank.
        iterations: Power iterations of the randomised form; each reduces the error of the subspace by (σ_{P+1} / σ_R)².
        oversampling: Number of extra sketch columns. Default: max(16, R // 2).
        seed: Seed of the sketch.

    Example:
        >>> u, s, vt = truncated_svd(torch.diag(torch.tensor([3.0, 2.0, 1.0])), 2)
        >>> s.round().tolist()
        [3.0, 2.0]

    Reference: Halko, Martinsson, Tropp, 2011, algorithm 4.4 and section 5.1.
    """
    matrix_OI = matrix_OI.float()
    smaller = min(matrix_OI.shape)
    size = min(smaller, rank + (max(16, rank // 2) if oversampling is None else oversampling))
    if method == "exact" or (method == "auto" and (smaller <= EXACT_BELOW or 2 * size >= smaller)):
        left, values, right = torch.linalg.svd(matrix_OI, full_matrices=False)
        return left[:, :rank], values[:rank], right[:rank]
    # Transpose a wide matrix, so that every orthogonalisation runs on the smaller side.
    wide = matrix_OI.shape[0] < matrix_OI.shape[1]
    left, values, right = _randomized(matrix_OI.T if wide else matrix_OI, size, iterations, seed)
    left, values, right = left[:, :rank], values[:rank], right[:rank]
    return (right.T, values, left.T) if wide else (left, values, right)


def _randomized(tall_OI: Tensor, size: int, iterations: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    # On the CPU, so that the sketch does not depend on the device's random generator.
    generator = torch.Generator().manual_seed(seed)
    basis_IP = torch.randn(tall_OI.shape[1], size, generator=generator).to(tall_OI.device)
    for _ in range(iterations):
        basis_IP = torch.linalg.qr(tall_OI.T @ (tall_OI @ basis_IP)).Q
    left_OP = torch.linalg.qr(tall_OI @ basis_IP).Q
    small_left, values, right = torch.linalg.svd(left_OP.T @ tall_OI, full_matrices=False)
    return left_OP @ small_left, values, right
