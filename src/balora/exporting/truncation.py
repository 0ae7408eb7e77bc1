"""Cut the rank of an exported change, with the smallest possible error."""

from __future__ import annotations

import copy
import dataclasses

import torch
from torch import Tensor

from balora.errors import BALoraError
from balora.exporting.weights import Change, Factors


@dataclasses.dataclass(frozen=True)
class Cut:
    """What a lower rank costs."""

    before: int
    """Rank of the exact change."""
    after: int
    error: float
    """Frobenius norm of what was cut off, divided by that of the exact change, over all layers together; in [0, 1]."""
    worst: float
    """The same for the layer that loses most."""
    layer: str
    """Name of that layer."""

    def describe(self) -> str:
        """Return one sentence for the user."""
        return (
            f"Rank {self.before} was cut to {self.after}: {self.error:.2%} of the change is lost (relative Frobenius norm; most in "
            f"{self.layer}, {self.worst:.2%}), so the result is not the trained model."
        )


@torch.no_grad()
def truncate(change: Change, rank: int) -> tuple[Change, Cut]:
    r"""Return the change of rank R that is nearest to a change, layer by layer, and its error.

    With :math:`s B A = U \Sigma V^\top` the nearest matrix of rank R keeps the R largest singular values. They come from two QR
    decompositions and one SVD of a matrix of the exact rank, never from the whole weight.

    Args:
        change: Exact change.
        rank: Rank R, at least 1 and below that of the change.

    Raises:
        BALoraError: The rank is not below that of the change, or a layer has DoRA's magnitude, which goes with its own factors.

    Reference: Eckart and Young, Psychometrika 1936.
    """
    if not 1 <= rank < change.config.r:
        raise BALoraError(
            f"The rank must be at least 1 and below {change.config.r}, the rank of the exact change, not {rank}. Leave it out to "
            "export the exact change."
        )
    magnitude = next((name for name, found in change.factors.items() if found.magnitude_O is not None), None)
    if magnitude is not None:
        raise BALoraError(
            f"A DoRA cannot be cut to another rank: {magnitude} has a magnitude that goes with its factors."
        )
    factors, lost, total, worst = {}, 0.0, 0.0, ("", 0.0)
    for name, exact in change.factors.items():
        factors[name], singular_values = _truncate(exact, rank)
        squares = singular_values.square()
        here, whole = float(squares[..., rank:].sum()), float(squares.sum())
        lost, total = lost + here, total + whole
        share = (here / whole) ** 0.5 if whole else 0.0
        worst = max(worst, (name, share), key=lambda found: found[1])
    config = copy.deepcopy(change.config)
    config.r = config.lora_alpha = rank
    error = (lost / total) ** 0.5 if total else 0.0
    cut = Cut(change.config.r, rank, error, worst[1], worst[0] or "no layer")
    return dataclasses.replace(change, factors=factors, config=config), cut


def _truncate(factors: Factors, rank: int) -> tuple[Factors, Tensor]:
    """Return the nearest factors of a rank, and the singular values of the exact change."""
    left_OR, inner_left = torch.linalg.qr(factors.b_OR.double())
    right_IR, inner_right = torch.linalg.qr(factors.a_RI.double().transpose(-1, -2))
    u, values, v = torch.linalg.svd(factors.scaling * inner_left @ inner_right.transpose(-1, -2), full_matrices=False)
    root = values[..., :rank].sqrt()
    b_OR = left_OR @ (u[..., :rank] * root[..., None, :])
    a_RI = (root[..., :, None] * v[..., :rank, :]) @ right_IR.transpose(-1, -2)
    return dataclasses.replace(factors, a_RI=a_RI.float(), b_OR=b_OR.float(), scaling=1.0), values
