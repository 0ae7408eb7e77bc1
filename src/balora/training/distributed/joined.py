"""Processes that a launcher has started for work other than training: evaluation, a teacher cache, anchors."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator

import torch
from torch import distributed as dist

from balora.errors import BALoraError
from balora.training.distributed.peers import Peers
from balora.turns import divided_among_processes

_LIMIT = datetime.timedelta(days=7)
"""The first process may grade answers for hours while the others wait. A process that is gone is noticed by `Peers`."""


@contextlib.contextmanager
def joined_processes() -> Iterator[int]:
    """Let the processes of torchrun or another launcher divide the work of this block; yield the rank of this process.

    The processes exchange results through gloo, in the memory of the CPU. If one fails or is killed, the others end within
    seconds, with its reason. With one process this does nothing.
    """
    peers = Peers()
    if peers.size == 1 or dist.is_initialized():
        yield peers.rank
        return
    with peers.watched():
        dist.init_process_group("gloo", timeout=_LIMIT)
        peers.connect()
        with divided_among_processes():
            yield peers.rank
        dist.destroy_process_group()  # not after an error: the other processes shall read the reason, not lose the connection


def own_device(device: str | None) -> str | None:
    """Return the device of this process: with several processes and GPUs, the GPU with the local rank of the process.

    Raises:
        BALoraError: Several processes were given one GPU, or this machine has fewer GPUs than processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or device == "cpu":
        return device
    if device not in (None, "cuda"):
        raise BALoraError(
            f"Every process needs a GPU of its own, and all were given {device}. Leave the device out; CUDA_VISIBLE_DEVICES "
            "chooses the GPUs."
        )
    if not torch.cuda.is_available():
        return device
    local, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= count:
        raise BALoraError(f"This machine shows {count} GPUs, and more processes were started on it. Start {count}.")
    return f"cuda:{local}"
