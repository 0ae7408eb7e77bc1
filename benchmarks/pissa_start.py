"""Seconds and error of a PiSSA start for a 7B-shaped model: exact, ours, peft's sixteen iterations.

`python benchmarks/pissa_start.py`. One matrix of each shape is decomposed and the time multiplied by how many there are;
the error is that of the rank-128 approximation, over the exact one's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from balora.methods.init.svd import truncated_svd
from rows import Rows

SHAPES = {(4096, 4096): 4 * 32, (11008, 4096): 3 * 32}
"""The last feed-forward matrix is the transpose of the first two: the same work."""
RANK = 128
Triplets = tuple[Tensor, Tensor, Tensor]


def methods(rank: int, seed: int = 0) -> dict[str, Callable[[Tensor], Triplets]]:
    """The ways to the principal components, by name."""

    def peft_niter_16(weight: Tensor) -> Triplets:  # as peft's LoraLayer.pissa_init does it
        left, values, right = torch.svd_lowrank(weight, rank, niter=16)
        return left, values, right.T

    return {
        "exact": lambda weight: truncated_svd(weight, rank, method="exact"),
        "ours": lambda weight: truncated_svd(weight, rank, method="randomized", seed=seed),
        "peft_niter_16": peft_niter_16,
    }


def weight_of(shape: tuple[int, int], device: str) -> Tensor:
    """Random, with a spectrum that decays as those of trained weights do: quickly at first, then slowly."""
    generator = torch.Generator().manual_seed(0)
    columns = 1.0 + 10.0 / torch.arange(1, shape[1] + 1).sqrt()
    return (torch.randn(shape, generator=generator) * columns * 0.02).to(device)


def error(weight: Tensor, triplets: Triplets) -> float:
    """Frobenius distance of the approximation."""
    left, values, right = triplets
    return float(torch.linalg.matrix_norm(weight - (left * values) @ right))


def measure(rows: Rows, shapes: dict[tuple[int, int], int], rank: int, device: str) -> dict[str, float]:
    """A row for each method and shape, and one for the whole model; returns the totals."""
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    totals: dict[str, float] = {}
    worst: dict[str, float] = {}
    for shape, count in shapes.items():
        weight = weight_of(shape, device)
        exact = None
        for name, decompose in methods(rank).items():
            if device == "cuda":
                decompose(weight[:512, :512])  # warm: the solver's handles
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
    """Read the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="to try the script")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    shapes = {(96, 64): 2, (64, 96): 1} if given.tiny else SHAPES
    device = "cuda" if torch.cuda.is_available() else "cpu"
    measure(Rows("pissa_start", given.output), shapes, 8 if given.tiny else RANK, device)


if __name__ == "__main__":
    main()
