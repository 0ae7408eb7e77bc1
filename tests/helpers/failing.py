"""The command in which one process fails at a point of its run: `failing.py RANK POINT WAY train CONFIG`.

POINT is prepare, step N, save or evaluate; WAY is killed, an exception, or a stop (SIGSTOP would be no end).
"""

from __future__ import annotations

import os
import signal
import sys

from small_runs import Do


def fail(way: str) -> None:
    if way == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if way == "error":
        from balora.errors import BALoraError

        raise BALoraError("The disk of this machine is full.")
    raise RuntimeError("a fault of this machine")


def arrange(point: str, way: str) -> None:
    """Let this process fail at a point."""
    import balora.training.run as run

    def before(name: str) -> None:
        inner = getattr(run, name)

        def failing(*args, **kwargs):
            fail(way)
            return inner(*args, **kwargs)

        setattr(run, name, failing)

    if point == "prepare":
        before("load_model")
    elif point == "save":
        before("save_result")
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
