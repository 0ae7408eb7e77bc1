"""The Ray engine: the same runs, on a cluster. Optional: ``pip install 'balora[ray]'``.

Every machine needs balora and sees the comparison's folder, the model and the data under the same paths (a shared file system).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from balora.errors import BALoraError
from balora.experiments.compare.worker import REASON, Task


class RayEngine:
    """Runs as Ray tasks, each in a process of its own.

    Ray finds a cluster through RAY_ADDRESS; without one it starts on this machine and ends with the comparison.

    Args:
        jobs: How many at most side by side; default as many as the cluster has GPUs, or else cores.

    Raises:
        BALoraError: Ray is not installed.
    """

    def __init__(self, jobs: int | None = None) -> None:
        self.jobs = jobs
        self._ray = _import_ray()

    def __call__(self, tasks: Sequence[Task], started: Callable[[Task], None]) -> Iterator[tuple[Task, int]]:
        """Keep the cluster busy until all tasks are done; on the way out none is left behind."""
        ray = self._ray
        owned = not ray.is_initialized()
        if owned:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report its use to its makers
            ray.init(log_to_driver=False, logging_level="ERROR", include_dashboard=False)
        running: dict[Any, Task] = {}
        try:
            slots, remote = self._remote()
            waiting = list(reversed(tasks))
            while waiting or running:
                while waiting and len(running) < slots:
                    task = waiting.pop()
                    started(task)
                    paths = [path for path in (task.config, task.log, task.evaluation) if path is not None]
                    running[remote.remote([str(path) for path in paths], os.getcwd())] = task
                for done in ray.wait(list(running))[0]:
                    yield (task := running.pop(done)), self._exit(done, task)
        finally:
            for left in running:
                ray.cancel(left, force=True)
            if owned:
                ray.shutdown()

    def _remote(self) -> tuple[int, Any]:
        """How many runs fit at a time, and the task with an equal share of the cluster."""
        have = self._ray.cluster_resources()
        cores, gpus = int(have.get("CPU", 1)), int(have.get("GPU", 0))
        slots = self.jobs or gpus or cores
        largest = max(int(node["Resources"].get("CPU", 1)) for node in self._ray.nodes() if node["Alive"])
        options = {"num_cpus": max(1, min(cores // slots, largest)), "num_gpus": 1 if gpus else 0, "max_retries": 0}
        return slots, self._ray.remote(**options)(_task())

    def _exit(self, done: Any, task: Task) -> int:
        try:
            return int(self._ray.get(done))
        except self._ray.exceptions.RayError as error:
            line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            with task.log.open("a") as log:
                log.write(f"{REASON}Ray could not finish the run: {line.strip()}\n")
            return 1


def _task() -> Callable[[list[str], str], int]:
    """What a node does. A function inside a function is sent whole, so that the node's worker need not import torch."""

    def run_in_a_process(paths: list[str], folder: str) -> int:
        import subprocess
        import sys

        command = [sys.executable, "-m", "balora.experiments.compare.worker", *paths]
        return subprocess.run(command, cwd=folder, check=False).returncode

    return run_in_a_process


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise BALoraError("--engine ray needs Ray: pip install 'balora[ray]'.") from error
    return ray


__all__ = ["RayEngine"]
