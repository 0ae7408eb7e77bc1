"""Start a verb in several processes on this machine, as torchrun does."""

from __future__ import annotations

import logging
import os
import sys
import uuid
from collections.abc import Sequence

from balora.errors import BALoraError, Interrupted


def rank() -> int:
    """Return the number of this process among those that were started together; 0 if it is alone."""
    return int(os.environ.get("RANK", "0") or 0)


def launch(processes: int, arguments: Sequence[str]) -> int:
    """Run ``balora ARGUMENTS`` in several processes, and return the exit status.

    Args:
        processes: Number of processes, at least 2. Each takes one GPU if the machine has any.
        arguments: Arguments of the command.

    Raises:
        BALoraError: There are fewer GPUs than processes, or this process was started by a launcher itself.
        Interrupted: SIGINT or SIGTERM ended the processes.
    """
    if "WORLD_SIZE" in os.environ:
        raise BALoraError(
            "--nproc starts the processes itself, and this one was already started by a launcher such as torchrun or "
            "accelerate. Leave one of the two out."
        )
    import torch
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus and processes > gpus:
        raise BALoraError(f"--nproc {processes} needs as many GPUs, and this machine shows {gpus}.")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP warns of a flag that a run needs only at some steps
    # The processes print their own errors; torch would add a traceback of the launcher.
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.2,
        start_method="spawn",
    )
    try:
        elastic_launch(config, entrypoint=sys.executable)("-m", "balora", *arguments)
    except ChildFailedError as error:
        first = min(error.failures.values(), key=lambda failure: failure.timestamp)
        return first.exitcode if first.exitcode > 0 else 128 - first.exitcode
    except SignalException as error:
        raise Interrupted("stopped. Run the same command again to continue.", int(error.sigval)) from None
    return 0
