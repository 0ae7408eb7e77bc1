"""A run that is killed five times ends with bitwise the same weights as a run that is not interrupted."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest

from balora.checkpoints.checkpoint import STAGING

STEPS = 60


def train(config: Path, output: Path) -> None:
    """Run `balora train`; the target of a separate process."""
    import sys

    import torch

    from balora.cli.main import main

    torch.set_num_threads(1)
    overrides = [
        f"training.max_steps={STEPS}",
        "training.logging_steps=1",
        "training.save_steps=7",
        "method.dropout=0.1",
    ]
    sys.argv = ["balora", "train", str(config), f"output={output}", "training.save_total_limit=2", *overrides]
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
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


def test_a_killed_run_equals_an_uninterrupted_run(spawn, config: Path, tmp_path: Path) -> None:
    uninterrupted, killed = tmp_path / "uninterrupted", tmp_path / "killed"
    process = spawn(target=train, args=(config, uninterrupted))
    process.start()
    process.join(300)
    assert process.exitcode == 0
    rng, kills = random.Random(0), 0
    while kills < 5:
        process = spawn(target=train, args=(config, killed))
        process.start()
        # Steps lost in a kill are repeated, so wait for more lines than there are now.
        target = min(logged(killed) + rng.randint(2, 12), STEPS - 3)
        while logged(killed) < target and process.is_alive():
            time.sleep(0.002)
        time.sleep(rng.random() * 0.05)
        assert process.is_alive(), "the run ended before it could be killed"
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += 1
    process = spawn(target=train, args=(config, killed))
    process.start()
    process.join(300)
    assert process.exitcode == 0
    for name in ("adapter_model.safetensors", "initial.safetensors"):
        assert (killed / "adapter" / name).read_bytes() == (uninterrupted / "adapter" / name).read_bytes(), name
    assert not (killed / STAGING).exists()
    steps = [json.loads(line)["step"] for line in (killed / "metrics.jsonl").read_text().splitlines()]
    assert list(dict.fromkeys(steps)) == list(range(1, STEPS + 1)), "every step is logged, in order"
