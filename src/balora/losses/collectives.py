r"""What the processes of a data-parallel run put together, on the graph (METHOD §6.7).

A term f of the whole batch is computed in each of P processes from the same sums (or rows) and added to its own loss, and
the gradients of these losses are then *averaged* (DDP, FSDP, DeepSpeed). So each process has to hand back P times what its
own rows contribute, and the average is the gradient of one f:

.. math:: \frac{1}{P} \sum_p P \, \frac{\partial f}{\partial S} \frac{\partial S_p}{\partial \theta}
          = \frac{\partial f}{\partial \theta}, \qquad S = \sum_p S_p

That takes no collective in the backward, where it would have to keep its place among those of DDP. It asks that f be the
same in every process: the same weight, and nothing in it of this process alone. What every process derives from the whole
in the same way, such as the gradient of a trained head, is right as it is.
Shapes: N rows of this process, D columns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


def process_count() -> int:
    """Number of processes that train together, P; 1 where no process group is there."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_processes(values: Tensor) -> Tensor:
    """Add up a tensor of one shape over all processes, differentiably.

    Every process has to call it, also one that has nothing to add.

    Args:
        values: This process's, any dtype that adds.

    Returns:
        The sum, the same in all processes; in a single process ``values`` itself. The backward multiplies by P.

    Example:
        >>> sum_over_processes(torch.tensor([1.0, 2.0]))
        tensor([1., 2.])
    """
    if process_count() == 1:
        return values
    total: Tensor = _Sum.apply(values)
    return total


def rows_of_all_processes(rows_ND: Tensor) -> Tensor:
    """Put the rows of all processes one below the other, in the order of their ranks, differentiably.

    Args:
        rows_ND: This process's; N may differ from process to process, and be 0.

    Returns:
        The rows, the same in all processes; in a single process ``rows_ND`` itself. The backward keeps this process's own
        and multiplies by P.

    Example:
        >>> rows_of_all_processes(torch.tensor([[1.0, 2.0]]))
        tensor([[1., 2.]])
    """
    if process_count() == 1:
        return rows_ND
    rows: Tensor = _Rows.apply(rows_ND)
    return rows


def rows_in_processes(rows_ND: Tensor) -> list[int]:
    """Numbers of rows in each process, by rank. Waits for the device."""
    processes = process_count()
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
        return process_count() * upstream


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_ND: Tensor) -> Tensor:
        counts = rows_in_processes(rows_ND)
        before = sum(counts[: dist.get_rank()])
        ctx.own = slice(before, before + len(rows_ND))
        # One shape for all: the collectives take no other.
        padded = rows_ND.new_zeros(max(counts), *rows_ND.shape[1:])
        padded[: len(rows_ND)] = rows_ND
        found = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(found, padded)
        return torch.cat([rows[:count] for rows, count in zip(found, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        return process_count() * upstream[ctx.own]
