"""Process of one run. Its peak memory is that of the run alone, and its crash does not stop the comparison.

Engines on other machines start it as ``python -m balora.experiments.compare.worker CONFIG LOG [EVALUATION]``.
"""

import gc
import json
import multiprocessing
import os
import sys
import threading
import time
import traceback
from multiprocessing.connection import wait
from pathlib import Path

import torch

from balora.checkpoints.run_directory import read_record
from balora.config.run_config import load_run_config
from balora.errors import BALoraError
from balora.experiments.compare.engines import ERROR_PREFIX, Task
from balora.experiments.compare.evaluation import EvaluationPlan, evaluate_run
from balora.files import read_json
from balora.logging_control import quiet_libraries
from balora.training.run import run
from balora.training.scaled_evaluation import evaluate_scaled

ANCHORS = "anchors"
"""Directory of the generated anchors that the runs of a comparison share."""


def work(task: Task, threads: int | None = None, device: str | None = None) -> None:
    """Train and evaluate one run, with all output in the log. Exit with the status of `run_task`.

    ``threads`` is the number of torch threads, ``device`` the value of CUDA_VISIBLE_DEVICES; None leaves either unchanged.
    """
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    if threads is not None:
        torch.set_num_threads(threads)
    _exit_with_parent()
    with task.log.open("a", buffering=1, encoding="utf-8", errors="backslashreplace") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        sys.stdout = sys.stderr = log
        quiet_libraries()
        sys.exit(run_task(task))


def run_task(task: Task) -> int:
    """Train and evaluate one run in this process; print an error.

    Returns:
        0, 2 for a user's mistake, 130 or 143 after a signal, else 1.
    """

    def say(line: str) -> None:
        sys.stdout.write(line + "\n")

    try:
        config = load_run_config(task.config)
        run_directory = Path(config.output)
        if (read_record(run_directory) or {}).get("status") != "finished":
            run(config, log=say, anchor_store=task.config.parent.parent / ANCHORS)
        gc.collect()  # free the memory of training
        scales = read_json(task.scales)["scales"] if task.scales.is_file() else [1.0]
        evaluate_scaled(run_directory, [scale for scale in scales if scale != 1], say)
        if task.evaluation is not None:
            plan = EvaluationPlan.from_dict(json.loads(task.evaluation.read_text(encoding="utf-8")))
            for scale in scales:
                evaluate_run(run_directory, plan, say, scale)
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
    except KeyboardInterrupt as error:
        say(f"{ERROR_PREFIX}{error or 'stopped by the user'}")
        return getattr(error, "exit_status", 130)
    except Exception as error:
        traceback.print_exc()
        first = next(iter(str(error).strip().splitlines()), "no message")
        say(f"{ERROR_PREFIX}{type(error).__name__}: {first}")
        return 1


def _exit_with_parent() -> None:
    """Exit as soon as the process that started this one ends in any way: an orphan would keep the lock of its run directory."""
    parent, process = multiprocessing.parent_process(), os.getppid()

    def watch() -> None:
        if parent is not None:
            wait([parent.sentinel])
        while parent is None and os.getppid() == process:  # started by an engine on another machine
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    work(Task(*map(Path, sys.argv[1:])))
