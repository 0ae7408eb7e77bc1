"""Batch statistics of rows that are divided between two processes. Run by tests/losses/test_distributed_statistics.py.

Each case computes its rows from a parameter, theta. The tests compare the gradient that DDP would give the optimizer: the
mean over the processes of the parameters' gradients.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, distributed

from balora.losses import LinearHead, LossParts, generation_loss, reference_generation_loss
from balora.losses.distributed_statistics import global_covariance, global_spectral_ratio, global_variance_hinge
from balora.regularizers import covariance, spectral_ratio, variance_hinge
from loss_cases import HEADS, SETTINGS, WEIGHTS
from loss_cases import Case as Batch
from processes import in_two_processes


@dataclasses.dataclass
class Case:
    """Number of rows, number of those in the first process, and a loss of a slice of the rows."""

    rows: int
    first: int
    parameters: list[Tensor]
    loss: Callable[[slice, bool], Tensor]
    """Loss of the rows of one process; with True the plain formulas of all rows."""

    def value_and_gradients(self, rows: slice, alone: bool) -> list[Tensor]:
        for parameter in self.parameters:
            parameter.grad = None
        loss = self.loss(rows, alone)
        loss.backward()
        return [loss.detach(), *(p.grad for p in self.parameters)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


STATISTICS = {
    "covariance": (global_covariance, covariance),
    "variance": (lambda z: global_variance_hinge(0.4 * z), lambda z: variance_hinge(0.4 * z)),
    "spectral 1": (lambda z: global_spectral_ratio(z, 1), lambda z: spectral_ratio(z, 1)),
    "spectral 2": (lambda z: global_spectral_ratio(z, 2), lambda z: spectral_ratio(z, 2)),
}
# (rows, rows in the first process, columns): as many rows as columns and more; fewer; all in one process; one row.
SHAPES = [(9, 5, 3), (7, 3, 7), (6, 2, 11), (8, 0, 3), (5, 5, 7), (1, 0, 4), (2, 1, 2), (0, 0, 3)]


def statistic(name: str, rows: int, first: int, columns: int, *, deficient: bool = False) -> Case:
    distributed_form, plain = STATISTICS[name]
    # The inputs are off the origin, so the mean matters. theta has rank 4, so some singular values may be 0.
    theta = normal(4, columns, seed=1)
    if deficient:
        theta[:, 1] = 2.0 * theta[:, 0]
    theta.requires_grad_()
    inputs = normal(rows, 4) + 1.0
    # Each process adds the same term to its loss, so the mean over the processes contains it once.
    return Case(rows, first, [theta], lambda here, alone: (plain if alone else distributed_form)(inputs[here] @ theta))


def generation(path: str, nothing_in_second: bool = False, **head) -> Case:
    batch = Batch(**head)
    if nothing_in_second:
        batch.labels_M[14:] = -100
    theta = torch.eye(batch.hidden, dtype=torch.float64).requires_grad_()
    items = int((batch.labels_M != -100).sum())

    def parts(here: slice, alone: bool) -> LossParts:
        # As in the Trainer, sums over items are divided by the mean number of items of a process.
        terms = {**WEIGHTS, **SETTINGS, "num_items": items if alone else items / 2, "across_processes": not alone}
        hidden = batch.hidden_MD.detach()[here] @ theta
        labels, teacher = batch.labels_M[here], batch.teacher_MD[here]
        own = (batch.teacher_head_VD, batch.teacher_bias_V) if batch.trained else (batch.head_VD, batch.bias_V)
        if alone or path == "plain":
            student = LinearHead(batch.head_VD, batch.bias_V, batch.logit_scale, batch.softcap)
            other = LinearHead(*own, batch.logit_scale, batch.softcap)
            return reference_generation_loss(student.logits(hidden), labels, other.logits(teacher), **terms)
        given = {"bias_V": batch.bias_V, "logit_scale": batch.logit_scale, "softcap": batch.softcap}
        if batch.trained:
            given |= {"teacher_head_VD": own[0], "teacher_bias_V": own[1]}
        return generation_loss(hidden, labels, batch.head_VD, teacher, **terms, **given)

    learns = [t for t in batch.trained_tensors if t is not batch.hidden_MD]
    return Case(batch.tokens, 14, [theta, *learns], lambda here, alone: parts(here, alone).loss)


def cases() -> dict[str, Callable[[], Case]]:
    found: dict[str, Callable[[], Case]] = {}
    for name in STATISTICS:
        for shape in SHAPES:
            found[f"{name} of {shape}"] = lambda n=name, s=shape: statistic(n, *s)
        found[f"{name}, deficient"] = lambda n=name: statistic(n, 9, 4, 5, deficient=True)
    for kind, head in HEADS.items():
        found[f"fused, {kind}"] = lambda h=head: generation("fused", **h)
        found[f"fused, {kind}, no token in one"] = lambda h=head: generation("fused", True, **h)
    found["fused, wider than tokens"] = lambda: generation("fused", hidden=41)
    found["fused, wider than the vocabulary"] = lambda: generation("fused", hidden=41, vocabulary=17)
    found["plain"] = lambda: generation("plain")
    found["plain, no token in one"] = lambda: generation("plain", True)
    return found


def work(rank: int, folder: Path) -> None:
    distributed.init_process_group("gloo")
    results = {}
    for name, make in cases().items():
        case = make()
        results[name] = case.value_and_gradients(
            slice(case.first) if rank == 0 else slice(case.first, case.rows), False
        )
    broken = normal(5, 3)
    if rank == 1:
        broken[0, 0] = torch.nan
    results["broken"] = [global_spectral_ratio(broken, 1), global_covariance(broken), global_variance_hinge(broken)]
    torch.save(results, folder / f"{rank}.pt")


if __name__ == "__main__":
    in_two_processes(work, Path(sys.argv[1]))
