"""Two processes on the CPU (gloo), for tests of distributed training."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

import balora


def run_script(script: Path, *arguments: str, seconds: float = 280) -> str:
    """Run a test script in a new process, which may fork, and return its output."""
    paths = [str(Path(balora.__file__).resolve().parents[1]), str(script.parent), str(Path(__file__).parent)]
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def in_two_processes(work: Callable[..., None], *arguments: object) -> None:
    """Call ``work(rank, *arguments)`` in two processes with the environment of a process group, which ``work`` may create.

    The processes are forked, so that modules are imported once. Call this before torch has started threads.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.start_processes(_in_one, (port, work, arguments), nprocs=2, start_method="fork")


def _in_one(rank: int, port: int, work: Callable[..., None], arguments: tuple[object, ...]) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    work(rank, *arguments)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
