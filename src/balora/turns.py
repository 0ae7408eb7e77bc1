"""Divide independent pieces of work among the processes of a process group: each process takes every P-th piece.

Work is divided only in a block of `divided_among_processes`, which all processes must enter; outside it every process does all
of its work itself, because a function may be called in one process alone.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")
_divided = contextvars.ContextVar("divided", default=False)


@contextlib.contextmanager
def divided_among_processes() -> Iterator[None]:
    """Divide the work in this block among the processes of a process group, all of which must enter it."""
    token = _divided.set(True)
    try:
        yield
    finally:
        _divided.reset(token)


def division() -> tuple[int, int]:
    """Return the rank of this process and the number P of processes that share the work; (0, 1) outside a divided block."""
    if not _divided.get():
        return 0, 1
    from torch import distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def by_turns(compute: Callable[[int], T], count: int) -> list[T]:
    """Return ``compute(index)`` for each index below ``count``; each process computes every P-th, and gets the others' results.

    Every process must call it with the same count. The results must be picklable.

    Example:
        >>> by_turns(lambda index: index * index, 4)
        [0, 1, 4, 9]
    """
    rank, processes = division()
    own = {index: compute(index) for index in range(rank, count, processes)}
    found = {index: value for part in together(own) for index, value in part.items()}
    return [found[index] for index in range(count)]


def together(value: T) -> list[T]:
    """Return the values of all processes, by rank. Every process must call it."""
    _, processes = division()
    if processes == 1:
        return [value]
    from torch import distributed as dist

    values: list[Any] = [None] * processes
    dist.all_gather_object(values, value)
    return values


def from_first(make: Callable[[], T]) -> T:
    """Call ``make`` in the first process and return its result in every process. Every process must call it."""
    rank, processes = division()
    if processes == 1:
        return make()
    from torch import distributed as dist

    made: list[Any] = [make() if rank == 0 else None]
    dist.broadcast_object_list(made, src=0)
    result: T = made[0]
    return result
