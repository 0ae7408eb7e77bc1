"""One run in a process of its own, so that its peak memory and its crash are its alone.

Also a command, for engines that start processes elsewhere: ``python -m balora.experiments.compare.worker CONFIG LOG [EVALUATION]``.
"""

from __future__ import annotations

import dataclasses
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
from balora.experiments.compare.evaluation import EvaluationPlan, evaluate_run
from balora.logging_control import quiet_libraries
from balora.training.run import run

REASON = "balora: "
"""What the line of a log begins with that says why the run stopped, as on the command's screen."""


@dataclasses.dataclass(frozen=True)
class Task:
    """A run to be made."""

    config: Path
    """Its settings, resolved."""
    log: Path
    """Where its screen goes."""
    evaluation: Path | None = None
    """What the trained run is measured on, as JSON; None for nothing."""


def work(task: Task, threads: int | None = None, device: str | None = None) -> None:
    """Train as the config says, and evaluate; what would go to the screen is in the log. Exit 0, 2 for a user's mistake, else 1.

    Args:
        task: The run.
        threads: Of torch, None for its own choice.
        device: What CUDA_VISIBLE_DEVICES is set to, None to leave it.
    """
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    if threads is not None:
        torch.set_num_threads(threads)
    _end_with_parent()
    with task.log.open("a", buffering=1) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        sys.stdout = sys.stderr = log
        quiet_libraries()
        sys.exit(_attempt(task))


def reason(log: Path, code: int) -> str:
    """Why a run stopped, in one sentence: what its log says last, or what its exit status means.

    Args:
        log: The run's log.
        code: Its process's exit status; negative is the signal that ended it.
    """
    if code == -9:
        return "The process was killed (signal 9), as the system does when memory runs out."
    if code < 0:
        return f"The process was ended by signal {-code}."
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    starts = [number for number, line in enumerate(lines) if line.startswith(REASON)]
    if not starts:
        return f"The process ended with status {code}; see {log}."
    return " ".join(line.strip() for line in lines[starts[-1] :]).removeprefix(REASON)


def _attempt(task: Task) -> int:
    def say(line: str) -> None:
        sys.stdout.write(line + "\n")

    try:
        settings = load_run_config(task.config)
        folder = Path(settings.output)
        if (read_record(folder) or {}).get("status") != "finished":  # else its evaluation alone is missing
            run(settings, log=say)
        if task.evaluation is not None:
            gc.collect()  # what training held on the device is not needed any more
            evaluate_run(folder, EvaluationPlan.from_dict(json.loads(task.evaluation.read_text())), say)
        return 0
    except BALoraError as error:
        say(f"{REASON}{error}")
        return 2
    except KeyboardInterrupt:
        say(f"{REASON}stopped by the user")
        return 130
    except Exception as error:
        traceback.print_exc()
        first = str(error).strip().splitlines()
        say(f"{REASON}{type(error).__name__}: {first[0] if first else 'no message'}")
        return 1


def _end_with_parent() -> None:
    """Stop when the comparison is gone, however it went: a run left over would hold its folder's lock."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    work(Task(*map(Path, sys.argv[1:])))
