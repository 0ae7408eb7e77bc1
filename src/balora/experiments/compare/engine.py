"""The local engine: runs as processes side by side on this machine.

Where there is no GPU, the processes are forked from one that has done the imports and nothing else, which saves each of them ten
seconds; their peak memory is their own, since the kernel counts a forked process from what it holds at the fork (library pages that
only the imports touched are left out). CUDA does not survive a fork, so with a GPU every run starts from nothing.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from typing import Any, Protocol

import torch

from balora.experiments.compare.worker import Task, work


class Engine(Protocol):
    """Something that makes runs."""

    @property
    def jobs(self) -> int | None:
        """How many side by side; None for as many as fit."""

    def __call__(self, tasks: Sequence[Task], started: Callable[[Task], None]) -> Iterator[tuple[Task, int]]:
        """Start every task, tell ``started``, and give each with its exit status as it ends."""


class LocalEngine:
    """Processes on this machine.

    Args:
        jobs: How many side by side. They share the cores evenly, and take the GPUs there are in turn.
    """

    def __init__(self, jobs: int = 1) -> None:
        self.jobs = jobs
        forks = sys.platform == "linux" and not torch.cuda.is_available()
        self._context: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
        if forks:
            self._context.set_forkserver_preload([work.__module__])

    def __call__(self, tasks: Sequence[Task], started: Callable[[Task], None]) -> Iterator[tuple[Task, int]]:
        """Keep ``jobs`` processes busy until all tasks are done; on the way out none is left behind."""
        waiting = list(reversed(tasks))
        running: dict[Any, tuple[Any, Task, int]] = {}
        free = list(reversed(range(self.jobs)))
        try:
            while waiting or running:
                while waiting and free:
                    task, slot = waiting.pop(), free.pop()
                    started(task)
                    process = self._context.Process(target=work, args=(task, self._threads(), _device(slot)))
                    process.start()
                    running[process.sentinel] = (process, task, slot)
                for sentinel in wait(list(running)):
                    process, task, slot = running.pop(sentinel)
                    process.join()
                    free.append(slot)
                    yield task, process.exitcode
        finally:
            for process, _, _ in running.values():
                process.terminate()
            for process, _, _ in running.values():
                process.join()

    def _threads(self) -> int | None:
        """Threads of one run: what the user said, else an equal share of the cores; None for one run at a time."""
        if self.jobs == 1 or os.environ.get("OMP_NUM_THREADS"):
            return None
        return max(1, (os.cpu_count() or 1) // self.jobs)


def _device(slot: int) -> str | None:
    """The one GPU that a slot's runs see, None where there is at most one."""
    if torch.cuda.device_count() < 2:
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    known = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    return known[slot % len(known)]
