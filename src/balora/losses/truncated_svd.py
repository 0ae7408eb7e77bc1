"""The largest singular triplets of a matrix: exact for a small one, by a block Krylov space for a large one.

Shapes: A is M × D, k the rank asked for, n = min(M, D), m = max(M, D).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from balora.regularizers.spectral import noise_floor

EXACT_SIZE = 256
"""Largest n for the exact method. It costs n³: 9 ms at 256, 60 ms at 512, 450 ms at 1024, on one core at 2.5 GHz."""

_EXTRA = 10
_TOLERANCE = 5e-4
"""Limit of the last step's change of the leading space (1 - mean squared cosine); the error is then below a tenth of it."""


class Triplets(NamedTuple):
    """The k largest singular values, descending, and their vectors; float64."""

    left_Mk: Tensor
    values_k: Tensor
    right_Dk: Tensor


def leading_triplets(matrix_MD: Tensor, rank: int) -> Triplets:
    """Return the largest singular triplets of a finite matrix.

    For a small matrix (n ≤ 256) they come from the eigenvectors of the smaller Gram matrix in float64, which is exact for
    float32 input. For a large one they come from a block Krylov space (Musco & Musco, 2015) with a fixed seed, which
    grows until the leading space stops changing. On decaying spectra, as language models have, that takes 4 blocks; the
    value is then within 1e-6 and the cosine of the gradient above 0.99999. On flat (random) spectra it takes about 10
    blocks, with 1e-4 and 0.999. If the space reaches n / 2 dimensions before it converges, the exact method is used.

    The matrix is float32 or wider and not empty; k above n means n. If a singular value is rounding noise, its vectors
    are 0.
    """
    left = matrix_MD.shape[0] <= matrix_MD.shape[1]  # the shorter side is that of the left vectors
    wide_nm = matrix_MD if left else matrix_MD.T
    rank = min(rank, len(wide_nm))
    near_nk = _krylov(wide_nm, rank) if len(wide_nm) > EXACT_SIZE else None
    if near_nk is None:
        gram_nn = wide_nm.double() @ wide_nm.double().T
        near_nk = torch.linalg.eigh(gram_nn).eigenvectors[:, -rank:].flip(1)
    far_mk = wide_nm.T.double() @ near_nk
    values_k = torch.linalg.vector_norm(far_mk, dim=0)
    signal_k = values_k > noise_floor(values_k[:1], len(wide_nm), matrix_MD.dtype)
    near_nk, far_mk = torch.where(signal_k, near_nk, 0.0), torch.where(signal_k, far_mk / values_k, 0.0)
    return Triplets(near_nk, values_k, far_mk) if left else Triplets(far_mk, values_k, near_nk)


def leading_eigenpairs(gram_nn: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the leading eigenvectors (n × k) and eigenvalues, descending, of a Gram matrix in float64.

    They are exact or from the same Krylov space. The matrix is finite and not empty; k above n means n.
    """
    rank = min(rank, len(gram_nn))
    vectors_nk = _krylov(gram_nn, rank) if len(gram_nn) > EXACT_SIZE else None
    if vectors_nk is None:
        values_n, vectors_nn = torch.linalg.eigh(gram_nn)
        return vectors_nn[:, -rank:].flip(1), values_n[-rank:].flip(0)
    return vectors_nk, (vectors_nk * (gram_nn @ vectors_nk)).sum(dim=0)


def _krylov(wide_nm: Tensor, rank: int) -> Tensor | None:
    """Return an orthonormal basis of the leading left singular space (n × k, float64), or None without convergence."""
    size, block = wide_nm.shape[0], rank + _EXTRA
    generator = torch.Generator().manual_seed(0)
    initial = torch.randn(wide_nm.shape[1], block, generator=generator, dtype=torch.float32).to(wide_nm)
    basis = _orthonormal(wide_nm @ initial)
    newest, image, previous = basis, wide_nm.new_empty(wide_nm.shape[1], 0, dtype=torch.float64), None
    for blocks in range(1, size // (2 * block) + 1):
        reached = wide_nm.T @ newest
        image = torch.cat([image, reached.double()], dim=1)  # Aᵀ Q for the basis Q
        if blocks in (3, 4) or (blocks > 4 and blocks % 2 == 0):
            # The best vectors within the basis are basis @ current, so their overlaps need the coefficients only.
            current = torch.linalg.eigh(image.T @ image).eigenvectors[:, -rank:].flip(1)
            if previous is not None:
                overlap = (previous.T @ current[: len(previous)]).square().sum() / rank  # mean squared cosine
                if 1.0 - overlap < _TOLERANCE:
                    return basis.double() @ current
            previous = current
        # Orthogonalise against the basis twice: once leaves too large errors if the space is nearly exhausted.
        newest = wide_nm @ reached
        for _ in range(2):
            newest = _orthonormal(newest - basis @ (basis.T @ newest))
        basis = torch.cat([basis, newest], dim=1)
    return None


def _orthonormal(block_nb: Tensor) -> Tensor:
    """Return an orthonormal basis of the columns, in their dtype.

    Householder QR waits for the device at each column: on an H200 the 40 QRs of a flat spectrum took 18 ms, more than all
    terms of 1,024 tokens. There the basis comes from two Cholesky factors of the b × b Gram matrix in float64.
    """
    if block_nb.device.type == "cpu":
        return torch.linalg.qr(block_nb).Q
    return _cholesky_orthonormal(block_nb)


def _cholesky_orthonormal(block_nb: Tensor) -> Tensor:
    """Return the basis by CholeskyQR2 (Yamamoto et al., 2015), or by QR if the columns are too close to dependent."""
    wide_nb = block_nb.double()
    for _ in range(2):
        lower_bb, _ = torch.linalg.cholesky_ex(wide_nb.T @ wide_nb)
        wide_nb = torch.linalg.solve_triangular(lower_bb, wide_nb.T, upper=False).T
    # One wait for both factors: a Gram matrix that is not positive gives columns that are far from orthonormal.
    error = (wide_nb.T @ wide_nb - torch.eye(wide_nb.shape[1], dtype=wide_nb.dtype, device=wide_nb.device)).abs().amax()
    if not error < 1e-6:
        return torch.linalg.qr(block_nb).Q
    return wide_nb.to(block_nb.dtype)
