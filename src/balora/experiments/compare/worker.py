"""Process of one run. Its peak memory is that of the run alone, and its crash does not stop the comparison.

Engines on other machines start it as ``python -m balora.experiments.compare.worker CONFIG LOG [EVALUATION]``.
"""

import gc
import json
import multiprocessing
import os
import sys
import threading
import traceback
from multiprocessing.connection import wait
from pathlib import Path

import torch

from balora.checkpoints.run_directory import read_record
from balora.config.run_config import load_run_config
from balora.errors import BALoraError
from balora.experiments.compare.engines import ERROR_PREFIX, Task
from balora.experiments.compare.evaluation import EvaluationPlan, evaluate_run
from balora.logging_control import quiet_libraries
from balora.training.run import run


def work(task: Task, threads: int | None = None, device: str | None = None) -> None:
    """Train and evaluate one run, with all output in the log. Exit with the status of `run_task`.

    ``threads`` is the number of torch threads, ``device`` the value of CUDA_VISIBLE_DEVICES; None leaves either unchanged.
    """
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    if threads is not None:
        torch.set_num_threads(threads)
    _exit_with_parent()
    with task.log.open("a", buffering=1) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        sys.stdout = sys.stderr = log
        quiet_libraries()
        sys.exit(run_task(task))


def run_task(task: Task) -> int:
    """Train and evaluate one run in this process; print an error. Return 0, 2 for a user's mistake, else 1 or 130."""

    def say(line: str) -> None:
        sys.stdout.write(line + "\n")

    try:
        config = load_run_config(task.config)
        run_directory = Path(config.output)
        if (read_record(run_directory) or {}).get("status") != "finished":
            run(config, log=say)
        if task.evaluation is not None:
            gc.collect()  # free the memory of training
            evaluate_run(run_directory, EvaluationPlan.from_dict(json.loads(task.evaluation.read_text())), say)
        if config.audit is not None:
            from balora.auditing.audit import audit_run

            gc.collect()
            found = audit_run(config, say)
            for line in found.broken if found is not None else []:
                say(f"Bound broken: {line}")
        return 0
    except BALoraError as error:
        say(f"{ERROR_PREFIX}{error}")
        return 2
    except KeyboardInterrupt:
        say(f"{ERROR_PREFIX}stopped by the user")
        return 130
    except Exception as error:
        traceback.print_exc()
        first = next(iter(str(error).strip().splitlines()), "no message")
        say(f"{ERROR_PREFIX}{type(error).__name__}: {first}")
        return 1


def _exit_with_parent() -> None:
    """Exit as soon as the comparison's process ends in any way: an orphan would keep the lock of its run directory."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    work(Task(*map(Path, sys.argv[1:])))
