"""PiSSA: start the adapter from the principal singular components, freeze the rest (eq. 1-3).

Our own start in place of peft's: seeded, stored with the checkpoint, and refused where it would be wrong.
Shapes: O output features, I input features, R adapter rank.
"""

from __future__ import annotations

import functools

from torch import Tensor, nn

from balora.methods.init.residual_init import start_from_weights
from balora.methods.init.svd import truncated_svd
from balora.methods.options import choice, whole
from balora.methods.registry import AdaptOptions

OPTIONS = {
    "svd": choice("auto", "exact, randomized, or auto: exact for small matrices", ("auto", "exact", "randomized")),
    "svd_iterations": whole(6, "power iterations of the randomised decomposition"),
}


def start_pissa(model: nn.Module, options: AdaptOptions) -> None:
    """Move the principal components of every target into its factors."""
    decompose = functools.partial(principal, method=options.extra["svd"], iterations=options.extra["svd_iterations"])
    start_from_weights(model, decompose, options.seed)


def principal(
    weight_OI: Tensor, rank: int, seed: int, *, method: str = "auto", iterations: int = 6
) -> tuple[Tensor, Tensor]:
    r"""The best rank-R approximation of a matrix, as two factors that share its singular values (eq. 1-3).

    .. math:: B = U_{:r} S_{:r}^{1/2}, \quad A = S_{:r}^{1/2} V_{:r}^\top

    The start divides both by :math:`\sqrt{s}` and freezes :math:`W_{res} = W - s B_0 A_0`.

    Args:
        weight_OI: W.
        rank: R.
        seed: Of the randomised decomposition's sketch.
        method: As `truncated_svd` takes it.
        iterations: Likewise.

    Returns:
        (A: R × I, B: O × R), float32.

    Reference: Meng et al., PiSSA, 2024; Chang et al., BA-LoRA, ICLR 2026, eq. 1-3.
    """
    left_OR, values_R, right_RI = truncated_svd(weight_OI, rank, method=method, iterations=iterations, seed=seed)
    root_R = values_R.sqrt()
    return root_R[:, None] * right_RI, left_OR * root_R
