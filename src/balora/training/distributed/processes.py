"""The processes that were asked for: their number, their backend, how they share the model, and the disk they write to."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, gather_object

from balora.errors import BALoraError

_ERRORS = {
    "already managed by another FSDP group": (
        "FSDP version 2 cannot shard this model as accelerate divides it: a weight that two layers share (an embedding) would be "
        "sharded twice. For BERT, name the layers: training.fsdp_config: {version: 2, transformer_layer_cls_to_wrap: [BertLayer]}. "
        "T5 cannot be sharded so; train with one unsharded model per process, or with DeepSpeed's ZeRO stage 2."
    ),
    "mark a variable ready only once": (
        "Reentrant gradient checkpointing does not work when several processes train (DDP). Set "
        "training.gradient_checkpointing_kwargs: {use_reentrant: false}."
    ),
    "finished reduction in the prior iteration": (
        "Some trained weights had no part in the loss of a batch, and DDP waits for the gradient of every weight. Set "
        "training.ddp_find_unused_parameters: true, or train only layers that every row uses."
    ),
}
_TRUE = ("1", "true", "True", "yes")
_WAIT = 10.0
"""Seconds that a network disk has to show a file which another machine has written."""


def asked_processes() -> int:
    """Return the number of processes that a launcher (torchrun, accelerate) has started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def refuse_separate_processes(training: Mapping[str, Any]) -> None:
    """Refuse several processes on a machine without an accelerator, unless they are to use the CPU: each would train alone.

    ``training`` is the section of the config. This needs no model.
    `check_processes` compares the numbers when accelerate has set up its processes.
    """
    asked = asked_processes()
    # DeepSpeed has an accelerator of its own, which can be the CPU.
    together = training.get("use_cpu") or training.get("deepspeed") or os.environ.get("ACCELERATE_USE_CPU", "") in _TRUE
    if asked > 1 and not together and not torch.accelerator.is_available():
        raise BALoraError(
            f"{asked} processes were started, and each would train alone, because this machine has no accelerator. Set "
            "training.use_cpu: true to train on the CPU together, or start one process."
        )


def check_processes(accelerator: Any) -> None:
    """Refuse a run in which accelerate uses another number of processes than the launcher has started."""
    asked, used = asked_processes(), accelerator.num_processes
    if asked != used:
        raise BALoraError(
            f"{asked} processes were started (WORLD_SIZE), and accelerate trains with {used}, so each would train alone. Start "
            "them with torchrun, or with accelerate launch and a number of processes that its config has devices for; a "
            "launcher of your own must also set RANK and LOCAL_RANK."
        )


def describe_processes(accelerator: Any) -> dict[str, Any]:
    """Return the record of a run's processes: ``world_size``, ``backend`` (None for one process) and ``sharding``.

    ``sharding`` is none, fsdp2, or zero1 and zero2.
    """
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    sharding = "none"
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        sharding = f"zero{accelerator.state.deepspeed_plugin.zero_stage}"
    elif accelerator.distributed_type == DistributedType.FSDP:
        sharding = f"fsdp{accelerator.state.fsdp_plugin.fsdp_version}"
    backend = str(torch.distributed.get_backend()) if several else None
    return {"world_size": accelerator.num_processes, "backend": backend, "sharding": sharding}


def ignored_sharding(args: Any, accelerator: Any) -> list[str]:
    """Return a sentence for each way of sharding that the arguments ask for and accelerate does not use."""
    kind = accelerator.distributed_type
    reason = "on the CPU" if args.use_cpu else "with one process"
    asked = {
        "training.deepspeed": (bool(args.deepspeed), DistributedType.DEEPSPEED),
        "training.fsdp": (bool(args.fsdp), DistributedType.FSDP),
    }
    return [
        f"{name} has no effect: accelerate does not shard {reason}, so every process holds the complete model and optimizer."
        for name, (wanted, used) in asked.items()
        if wanted and kind != used
    ]


def check_shared_directory(run: Path, checkpoint: Path | None, file: str) -> None:
    """Refuse a run directory that the processes do not share: they would resume from different checkpoints.

    Every process must call this, after rank 0 has written ``file`` into the directory.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    torch.distributed.barrier()
    until = time.monotonic() + _WAIT
    while not (seen := (run / file).is_file()) and time.monotonic() < until:
        time.sleep(0.2)
    views = gather_object([(socket.gethostname(), checkpoint.name if checkpoint else None, seen)])
    host, first, _ = views[0]
    for rank, (other, found, sees) in enumerate(views):
        if sees and found == first:
            continue
        has = f"sees {found or 'no checkpoint'} where process 0 sees {first or 'none'}" if sees else "does not see it"
        raise BALoraError(
            f"The processes do not share the run directory {run}: process 0 (on {host}) writes it, and process {rank} (on {other}) "
            f"{has}. Set output to a folder on a disk that all machines share."
        )


def explain(error: BaseException) -> str | None:
    """Return a sentence for an error of DDP or FSDP that has a known cause in the settings."""
    return next((text for words, text in _ERRORS.items() if words in str(error)), None)


def refuse_reentrant_checkpointing(args: Any, accelerator: Any) -> None:
    """Refuse reentrant gradient checkpointing under DDP, which would fail at the first step."""
    kwargs = args.gradient_checkpointing_kwargs or {}
    ddp = accelerator.num_processes > 1 and accelerator.distributed_type not in (
        DistributedType.FSDP,
        DistributedType.DEEPSPEED,
    )
    if ddp and args.gradient_checkpointing and kwargs.get("use_reentrant"):
        raise BALoraError(_ERRORS["mark a variable ready only once"])
