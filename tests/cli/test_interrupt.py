"""Ctrl-C and SIGTERM: a checkpoint, one line that says how to go on, a status, and the run resumes to the same weights."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from balora.checkpoints.checkpoint import STAGING

STEPS = 40


def train(config: Path, output: Path, errors: Path, overrides: tuple[str, ...], seconds: float) -> None:
    """Run `balora train` with steps of at least this many seconds; the target of a separate process."""
    import torch

    from balora.cli.main import main
    from balora.training.trainer import BALoraTrainer

    torch.set_num_threads(1)
    step = BALoraTrainer.training_step

    def slow_step(*args, **kwargs):
        errors.with_name("stepping").touch()
        time.sleep(seconds)
        return step(*args, **kwargs)

    BALoraTrainer.training_step = slow_step
    settings = [
        f"training.max_steps={STEPS}",
        "training.logging_steps=3",
        "training.save_steps=100",
        "method.dropout=0.1",
    ]
    sys.argv = ["balora", "train", str(config), f"output={output}", *settings, *overrides]
    log = errors.open("a")
    os.dup2(log.fileno(), 2)
    sys.stderr = log
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    main()


def logged(run: Path) -> int:
    path = run / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


@pytest.fixture(scope="module")
def spawn():
    """Constructor of processes that are forked after all imports, so that a restart does not take ten seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["balora.cli.main", "balora.training.run"])
    return context.Process


class Runs:
    def __init__(self, spawn, config: Path, tmp_path: Path) -> None:
        self.spawn, self.config, self.errors = spawn, config, tmp_path / "errors"

    def start(self, output: Path, *overrides: str, seconds: float = 0.0):
        self.errors.write_text("")
        process = self.spawn(target=train, args=(self.config, output, self.errors, overrides, seconds))
        process.start()
        return process

    def finish(self, output: Path, *overrides: str) -> None:
        process = self.start(output, *overrides)
        process.join(200)
        assert process.exitcode == 0, self.errors.read_text()

    def interrupt(self, output: Path, number: int, lines: int, *overrides: str) -> str:
        """Send a signal when the run has logged some lines; return the last line on stderr."""
        process = self.start(output, *overrides)
        while logged(output) < lines and process.is_alive():
            time.sleep(0.002)
        assert process.is_alive(), "the run ended before it got the signal"
        os.kill(process.pid, number)
        process.join(60)
        assert process.exitcode == 128 + number, self.errors.read_text()
        assert "Traceback" not in self.errors.read_text()
        assert json.loads((output / "run.json").read_text())["status"] == "interrupted"
        assert not (output / STAGING).exists()
        return self.errors.read_text().splitlines()[-1]


@pytest.fixture
def runs(spawn, config: Path, tmp_path: Path) -> Runs:
    return Runs(spawn, config, tmp_path)


def losses(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if any(key.startswith("eval_") for key in line)]


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("training.save_strategy=no",),
        ("training.save_only_model=true",),
        ("data.eval=0.25", "training.eval_strategy=epoch", "training.save_strategy=epoch"),
        ("data.eval=0.25", "training.eval_strategy=steps", "training.eval_steps=2", "training.save_strategy=best",
         "training.metric_for_best_model=loss", "training.load_best_model_at_end=true"),
    ],
    ids=["steps", "no checkpoints", "only the model", "epochs", "best"],
)  # fmt: skip
def test_a_stopped_run_ends_like_an_uninterrupted_one(runs: Runs, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    runs.finish(whole, *overrides)
    for number, lines in ((signal.SIGINT, 2), (signal.SIGTERM, 6)):
        last = runs.interrupt(stopped, number, lines, *overrides)
        assert last.startswith("balora: stopped at step ") and f" of {STEPS}. Run the same command again" in last
        assert str(stopped / "checkpoint-") in last
    runs.finish(stopped, *overrides)
    for name in ("adapter_model.safetensors", "initial.safetensors"):
        assert (stopped / "adapter" / name).read_bytes() == (whole / "adapter" / name).read_bytes(), name
    keep = lambda rows: [{k: v for k, v in row.items() if not k.endswith(("runtime", "per_second"))} for row in rows]  # noqa: E731
    assert keep(losses(stopped)) == keep(losses(whole)), "no evaluation is lost or made twice"


def test_a_second_ctrl_c_ends_at_once(runs: Runs, tmp_path: Path) -> None:
    output = tmp_path / "run"
    process = runs.start(output, seconds=30.0)
    while not runs.errors.with_name("stepping").exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGTERM)
    time.sleep(0.2)
    assert process.is_alive(), "launchers repeat SIGTERM"
    os.kill(process.pid, signal.SIGINT)
    process.join(5)
    assert process.exitcode == 130
    assert json.loads((output / "run.json").read_text())["status"] == "interrupted"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_run_is_one_line(number: int, tmp_path: Path) -> None:
    code = (
        "import os, sys, balora.cli.verbs as verbs\n"
        f"verbs.read_run_config = lambda *_: os.kill(os.getpid(), {int(number)}) or __import__('time').sleep(5)\n"
        "from balora.cli import main\n"
        "sys.argv = ['balora', 'validate', 'x.yaml']\n"
        "main.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 128 + number
    assert done.stderr == "balora: stopped. Run the same command again to continue.\n"
