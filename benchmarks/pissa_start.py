"""Measure time and error of a PiSSA initialisation at the 7B shapes: exact SVD, balora, and peft with sixteen iterations.

`python benchmarks/pissa_start.py`. One matrix of each shape is decomposed, and its time is multiplied by the number of such
matrices. The error is that of the rank-128 approximation, divided by that of the exact one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from balora.methods.init.svd import truncated_svd
from result_rows import Rows

SHAPES = {(4096, 4096): 4 * 32, (11008, 4096): 3 * 32}
"""Number of matrices by shape. The last feed-forward matrix is the transpose of the first two and takes the same work."""
RANK = 128
Triplets = tuple[Tensor, Tensor, Tensor]


def methods(rank: int, seed: int = 0) -> dict[str, Callable[[Tensor], Triplets]]:
    """Return the decompositions by name."""

    def peft_niter_16(weight: Tensor) -> Triplets:  # as peft's LoraLayer.pissa_init does it
        left, values, right = torch.svd_lowrank(weight, rank, niter=16)
        return left, values, right.T

    return {
        "exact": lambda weight: truncated_svd(weight, rank, method="exact"),
        "ours": lambda weight: truncated_svd(weight, rank, method="randomized", seed=seed),
        "peft_niter_16": peft_niter_16,
    }


def weight_of(shape: tuple[int, int], device: str) -> Tensor:
    """Return a random matrix whose spectrum decays like that of trained weights: quickly at first, then slowly."""
    generator = torch.Generator().manual_seed(0)
    columns = 1.0 + 10.0 / torch.arange(1, shape[1] + 1).sqrt()
    return (torch.randn(shape, generator=generator) * columns * 0.02).to(device)


def error(weight: Tensor, triplets: Triplets) -> float:
    """Return the Frobenius norm of the approximation's error."""
    left, values, right = triplets
    return float(torch.linalg.matrix_norm(weight - (left * values) @ right))


def measure(rows: Rows, shapes: dict[tuple[int, int], int], rank: int, device: str) -> dict[str, float]:
    """Write a row for each method and shape, and one for the model; return the totals."""
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    totals: dict[str, float] = {}
    worst: dict[str, float] = {}
    for shape, count in shapes.items():
        weight = weight_of(shape, device)
        exact = None
        for name, decompose in methods(rank).items():
            if device == "cuda":
                decompose(weight[:512, :512])  # warm-up of the solver
            wait()
            begun = time.perf_counter()
            triplets = decompose(weight)
            wait()
            seconds = time.perf_counter() - begun
            off = error(weight, triplets)
            exact = off if exact is None else exact
            totals[name] = totals.get(name, 0.0) + count * seconds
            worst[name] = max(worst.get(name, 0.0), off / exact)
            rows.add(kind="matrix", method=name, rows=shape[0], columns=shape[1], rank=rank, seconds=seconds,
                     error_over_exact=off / exact, count=count, where=device)  # fmt: skip
    for name, seconds in totals.items():
        rows.add(kind="model", method=name, seconds=seconds, error_over_exact=worst[name], rank=rank, where=device)
    return totals


def main() -> None:
    """Parse the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try the script")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    shapes = {(96, 64): 2, (64, 96): 1} if given.tiny else SHAPES
    device = "cuda" if torch.cuda.is_available() else "cpu"
    measure(Rows("pissa_start", given.output), shapes, 8 if given.tiny else RANK, device)


if __name__ == "__main__":
    main()
