"""Measure one variant in a separate process: seconds of its steps and peak resident memory above the loaded model."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import time
from pathlib import Path
from typing import Any

from shapes import Shape

_MMAP_THRESHOLD = -3  # glibc's M_MMAP_THRESHOLD
PRELOADED = ["torch", "transformers", "peft", "balora.training.steps.generation_step", "variants"]


def measure(variant: str, shape: Shape, steps: int = 2, *, returned: bool = False) -> dict[str, Any]:
    """Run the steps in a new process.

    Args:
        variant: Name of the variant.
        shape: Model and batches.
        steps: Number of steps.
        returned: Make the C library return every large block when it is freed; the process also shares its imports with
            other measurements, to save time. By default the library keeps freed blocks, and how many depends on the
            order of allocations, so the peak is exact to some ten percent only.

    Returns:
        ``peak_mib`` above the loaded, adapted model (with a second model, optimizer states and everything else),
        ``loaded_mib``, ``seconds`` of each step after the first; or ``status`` with the error.
    """
    context: Any = multiprocessing.get_context("forkserver" if returned else "spawn")
    if returned:
        context.set_forkserver_preload(PRELOADED)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(sender, variant, shape, steps, returned))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:  # the process was killed, most likely for its memory
        process.join()
        return {"status": f"died with exit code {process.exitcode}"}
    finally:
        process.join()


def _run(sender: Any, variant: str, shape: Shape, steps: int, returned: bool) -> None:
    import variants

    if returned:
        ctypes.CDLL("libc.so.6").mallopt(_MMAP_THRESHOLD, 2**20)

    try:
        model = variants.load(variant, shape)
        batches = shape.batches(1)
        _release_memory()
        loaded = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak
        ready, opened = variants.prepare(variant, shape, model, batches)
        seconds = []
        with opened:
            for _ in range(steps):
                begun = time.perf_counter()
                ready.step(batches[0])
                seconds.append(time.perf_counter() - begun)
        peak = _resident("VmHWM")
        sender.send({"peak_mib": peak - loaded, "loaded_mib": loaded, "seconds": seconds[1:] or seconds})
    except (RuntimeError, MemoryError) as error:
        sender.send({"status": f"{type(error).__name__}: {str(error)[:200]}"})


def _resident(field: str) -> float:
    """Return a field of /proc/self/status in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(field + ":"))


def _release_memory() -> None:
    """Return the memory that loading used to the system: the allocator would keep some of it."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
