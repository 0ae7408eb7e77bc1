"""The command in which one process fails at a point of its run: `failing.py RANK POINT WAY train CONFIG`.

POINT is prepare (before the model is loaded), split (the initial values are exchanged), teacher (a classifier's teacher cache is
filled), anchors (the model writes them), a step, checkpoint, save or evaluate; WAY is killed, error or fault. The time of the
failure is written to the file that BALORA_FAILED_AT names.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import launched
from small_runs import Do

POINTS = ("prepare", "split", "teacher", "anchors", "1", "2", "checkpoint", "save", "evaluate")


BEFORE_THE_RECORD = ("prepare", "split")
"""Points at which the run has no directory yet."""


def write_config(folder: Path, point: str, output: str) -> Path:
    """Write the config of a run that comes to a point."""
    task = "classification" if point == "teacher" else "generation"
    sections = {"anchor": {"generate": 40, "tokens": 8}} if point == "anchors" else {}
    return launched.write_config(folder, output, task, **sections)


def fail(way: str) -> None:
    if file := os.environ.get("BALORA_FAILED_AT"):
        Path(file).write_text(str(time.time()))
    if way == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if way == "error":
        from balora.errors import BALoraError

        raise BALoraError("The disk of this machine is full.")
    raise RuntimeError("a fault of this machine")


def arrange(point: str, way: str) -> None:
    """Let this process fail at a point."""
    import balora.training.run as run
    from balora.anchoring import sampling
    from balora.methods.init import by_turns
    from balora.teacher.logit_cache import LogitCache
    from balora.training.item_results import ItemRecorder

    def before(owner: object, name: str) -> None:
        inner = getattr(owner, name)

        def failing(*args, **kwargs):
            fail(way)
            return inner(*args, **kwargs)

        setattr(owner, name, failing)

    places = {
        "prepare": (run, "load_model"), "save": (run, "save_result"), "split": (by_turns, "_sent"),
        "teacher": (LogitCache, "_exchange"), "anchors": (sampling, "_write"), "evaluate": (ItemRecorder, "evaluate"),
    }  # fmt: skip
    if point in places:
        before(*places[point])
    elif point == "checkpoint":
        kind = run.BALoraTrainer
        kind._complete = lambda self, checkpoint: fail(way)
    else:
        train = run._train

        def training(trainer, *arguments):
            trainer.add_callback(Do("on_step_end", int(point), lambda: fail(way)))
            return train(trainer, *arguments)

        run._train = training


if __name__ == "__main__":
    rank, point, way = sys.argv[1:4]
    del sys.argv[1:4]
    if os.environ["RANK"] == rank:
        arrange(point, way)
    from balora.cli.main import main

    main()
