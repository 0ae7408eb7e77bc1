r"""Differentiable collectives of a data-parallel run (method.md, departure 7).

Each of P processes computes the same term f of the whole batch from the same sums (or rows), and adds it to its own loss.
The gradients of these losses are then *averaged* (DDP, FSDP, DeepSpeed). So each process must return P times the gradient
of its own rows; the average is then the gradient of f:

.. math:: \frac{1}{P} \sum_p P \, \frac{\partial f}{\partial S} \frac{\partial S_p}{\partial \theta}
          = \frac{\partial f}{\partial \theta}, \qquad S = \sum_p S_p

The backward needs no collective, which would have to run in step with those of DDP. The condition is that f is the same in
every process: same weight, and no input that differs between processes. A gradient that every process computes from the
whole batch, such as that of a trained head, needs no factor.
Shapes: N rows of this process, D columns.
"""

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


def world_size() -> int:
    """Return the number of processes that train together, P; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_across_processes(values: Tensor) -> Tensor:
    """Add up a tensor of one shape over all processes, differentiably; in a single process return it.

    Every process must call it, also one that has nothing to add. The backward multiplies by P.
    """
    total: Tensor = values if world_size() == 1 else _Sum.apply(values)
    return total


def gather_rows(rows_ND: Tensor) -> Tensor:
    """Concatenate the rows of all processes by rank, differentiably; in a single process return them.

    N may differ between processes, and may be 0. The backward returns P times the gradient of this process's own rows.
    """
    rows: Tensor = rows_ND if world_size() == 1 else _Rows.apply(rows_ND)
    return rows


def agreed(answer: bool, device: torch.device) -> bool:
    """Return whether every process answers True, so that all take the same way. Every process must call it."""
    if world_size() == 1:
        return answer
    count = torch.tensor(int(answer), device=device)
    dist.all_reduce(count)
    return int(count) == world_size()


def row_counts(rows_ND: Tensor) -> list[int]:
    """Return the number of rows in each process, by rank. Waits for the device."""
    processes = world_size()
    if processes == 1:
        return [len(rows_ND)]
    counts = torch.zeros(processes, dtype=torch.int64, device=rows_ND.device)
    counts[dist.get_rank()] = len(rows_ND)
    dist.all_reduce(counts)
    numbers: list[int] = counts.tolist()
    return numbers


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        return world_size() * upstream


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_ND: Tensor) -> Tensor:
        counts = row_counts(rows_ND)
        before = sum(counts[: dist.get_rank()])
        ctx.own = slice(before, before + len(rows_ND))
        # all_gather needs tensors of one shape.
        padded = rows_ND.new_zeros(max(counts), *rows_ND.shape[1:])
        padded[: len(rows_ND)] = rows_ND
        found = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(found, padded)
        return torch.cat([rows[:count] for rows, count in zip(found, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        return world_size() * upstream[ctx.own]
