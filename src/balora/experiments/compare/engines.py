"""Engines that start the runs of a comparison: processes on this machine, or tasks on a Ray cluster."""

import dataclasses
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Protocol

from balora.errors import BALoraError

RETRIES = 3
"""Times that Ray starts a run again if a machine or one of Ray's workers is lost. The run resumes from its checkpoint."""
ERROR_PREFIX = "balora: "
"""Start of the log line with the error, as the command prints it."""


@dataclasses.dataclass(frozen=True)
class Task:
    """Run to start: the files of its complete config, its output, and its evaluation plan (None for no evaluation)."""

    config: Path
    log: Path
    evaluation: Path | None = None

    @property
    def scales(self) -> Path:
        """File with the scales to evaluate the run's change at; without it the change itself is evaluated."""
        return self.config.with_suffix(".scales.json")


class Engine(Protocol):
    """Starter of runs."""

    @property
    def jobs(self) -> int | None:
        """Maximum number of runs at a time; None for as many as fit."""

    def __call__(self, tasks: Sequence[Task], started: Callable[[Task], None]) -> Iterator[tuple[Task, int]]:
        """Start every task, call ``started`` with it, and yield it with its exit status when it ends."""


class LocalEngine:
    """Processes on this machine.

    Without a GPU, processes are forked from one that has only imported balora, which saves each run ten seconds. The kernel counts
    the peak memory of a forked process from the fork. CUDA does not survive a fork, so with a GPU every run is a new process.

    ``jobs`` runs at a time divide the cores evenly and use the GPUs in turn.
    """

    def __init__(self, jobs: int = 1) -> None:
        self.jobs = jobs

    def __call__(self, tasks: Sequence[Task], started: Callable[[Task], None]) -> Iterator[tuple[Task, int]]:
        """Keep ``jobs`` processes busy until all tasks are done; terminate the remaining ones on an early exit."""
        from balora.experiments.compare.worker import work  # imports torch, which an invalid argument need not wait for

        context = _process_context()
        default = self.jobs == 1 or os.environ.get("OMP_NUM_THREADS")  # torch or the user chooses the threads of a run
        threads = None if default else max(1, (os.cpu_count() or 1) // self.jobs)
        waiting = list(reversed(tasks))
        running: dict[Any, tuple[Any, Task, int]] = {}
        free = list(reversed(range(self.jobs)))
        try:
            while waiting or running:
                while waiting and free:
                    task, slot = waiting.pop(), free.pop()
                    started(task)
                    process = context.Process(target=work, args=(task, threads, _device(slot)))
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


def _process_context() -> Any:
    import torch

    if sys.platform != "linux" or torch.cuda.is_available():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["balora.experiments.compare.worker"])
    return context


def _device(slot: int) -> str | None:
    """Choose the GPU that the runs of a slot see; None if there is at most one GPU."""
    import torch

    if torch.cuda.device_count() < 2:
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    return devices[slot % len(devices)]


class RayEngine:
    """Ray tasks, each with a process for its run. Optional: ``pip install 'balora[ray]'``.

    Ray finds a cluster through RAY_ADDRESS; without it, Ray starts on this machine and stops with the comparison. Every machine
    needs balora, and must see the directory of the comparison, the model and the data under the same paths (a shared file system).

    A run whose machine is lost is started again elsewhere. A run that fails itself is not: its row has the reason.

    ``jobs`` is the maximum number of runs at a time; default the number of GPUs of the cluster, or of cores if it has no GPU.
    """

    def __init__(self, jobs: int | None = None) -> None:
        self.jobs = jobs
        try:
            import ray
        except ImportError as error:
            raise BALoraError("--engine ray needs Ray: pip install 'balora[ray]'.") from error
        self._ray: Any = ray

    def __call__(self, tasks: Sequence[Task], started: Callable[[Task], None]) -> Iterator[tuple[Task, int]]:
        """Keep the cluster busy until all tasks are done; cancel the remaining ones on an early exit."""
        ray = self._ray
        own_cluster = not ray.is_initialized()
        if own_cluster:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # by default Ray sends usage statistics to its makers
            try:
                ray.init(log_to_driver=False, logging_level="ERROR", include_dashboard=False)
            except Exception as error:  # of many kinds: a connection, a timeout, a port, a version
                address = os.environ.get("RAY_ADDRESS")
                where = f"The Ray cluster at {address} (RAY_ADDRESS)" if address else "Ray on this machine"
                reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
                raise BALoraError(
                    f"{where} did not answer: {reason.rstrip('.')}. No run was started; leave --engine out to run on this machine."
                ) from error
        running: dict[Any, Task] = {}
        try:
            slots, remote = self._remote()
            waiting = list(reversed(tasks))
            while waiting or running:
                while waiting and len(running) < slots:
                    task = waiting.pop()
                    started(task)
                    paths = [str(path) for path in (task.config, task.log, task.evaluation) if path is not None]
                    running[remote.remote(paths, os.getcwd())] = task
                for done in ray.wait(list(running))[0]:
                    yield (task := running.pop(done)), self._exit_status(done, task)
        finally:
            for left in running:
                ray.cancel(left, force=True)
            if own_cluster:
                ray.shutdown()

    def _remote(self) -> tuple[int, Any]:
        """Return how many runs fit at a time, and a remote function with an equal part of the cluster for each."""
        resources = self._ray.cluster_resources()
        cores, gpus = int(resources.get("CPU", 1)), int(resources.get("GPU", 0))
        slots = self.jobs or gpus or cores
        largest = max(int(node["Resources"].get("CPU", 1)) for node in self._ray.nodes() if node["Alive"])
        options = {"num_cpus": max(1, min(cores // slots, largest)), "num_gpus": 1 if gpus else 0}

        # Ray pickles a nested function by value, so that its worker need not import balora and torch.
        def run_process(paths: list[str], directory: str) -> int:
            import subprocess
            import sys

            command = [sys.executable, "-m", "balora.experiments.compare.worker", *paths]
            return subprocess.run(command, cwd=directory, check=False).returncode

        return slots, self._ray.remote(**options, max_retries=RETRIES)(run_process)

    def _exit_status(self, done: Any, task: Task) -> int:
        try:
            return int(self._ray.get(done))
        except self._ray.exceptions.RayError as error:
            line = next(iter(str(error).strip().splitlines()), type(error).__name__)
            with task.log.open("a", encoding="utf-8") as log:
                log.write(f"{ERROR_PREFIX}Ray could not finish the run: {line.strip()}\n")
            return 1


def failure_reason(log: Path, status: int) -> str:
    """Explain a failed run by the last error in its log, else by its exit status (if negative, the signal that ended it)."""
    if status == -9:
        return "The process was killed (signal 9). The system does this when memory runs out."
    if status < 0:
        return f"The process was ended by signal {-status}."
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    starts = [number for number, line in enumerate(lines) if line.startswith(ERROR_PREFIX)]
    if not starts:
        return f"The process ended with status {status}; see {log}."
    return " ".join(line.strip() for line in lines[starts[-1] :]).removeprefix(ERROR_PREFIX)
