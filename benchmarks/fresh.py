"""Measure one variant in a process of its own: seconds of its steps and the peak of its resident set above the loaded model."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import time
from pathlib import Path
from typing import Any

from shapes import Shape

_MMAP_THRESHOLD = -3  # glibc's M_MMAP_THRESHOLD
PRELOADED = ["torch", "transformers", "peft", "balora.training.generation_step", "variants"]


def measure(variant: str, shape: Shape, steps: int = 2, *, returned: bool = False) -> dict[str, Any]:
    """Run the steps in a fresh process.

    Args:
        variant: What.
        shape: On which model.
        steps: How many.
        returned: Have the C library give every large block back when it is freed (and share the imports with the other
            measurements, to save time). Left to itself it keeps freed blocks, and how many depends on the order in which
            they were taken: the peak then says how much was held within some ten percent.

    Returns:
        ``peak_mib`` above the loaded, adapted model (a second model, optimizer states and all counted), ``loaded_mib``,
        ``seconds`` of each step after the first; or ``status`` with what went wrong.
    """
    context: Any = multiprocessing.get_context("forkserver" if returned else "spawn")
    if returned:
        context.set_forkserver_preload(PRELOADED)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(theirs, variant, shape, steps, returned))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:  # killed: out of memory, most likely
        process.join()
        return {"status": f"died with exit code {process.exitcode}"}
    finally:
        process.join()


def _run(answer: Any, variant: str, shape: Shape, steps: int, returned: bool) -> None:
    import variants as made

    if returned:
        ctypes.CDLL("libc.so.6").mallopt(_MMAP_THRESHOLD, 2**20)

    try:
        model = made.load(variant, shape)
        batches = shape.batches(1)
        _give_back()
        loaded = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
        ready, opened = made.prepare(variant, shape, model, batches)
        seconds = []
        with opened:
            for _ in range(steps):
                begun = time.perf_counter()
                ready.step(batches[0])
                seconds.append(time.perf_counter() - begun)
        peak = _resident("VmHWM")
        answer.send({"peak_mib": peak - loaded, "loaded_mib": loaded, "seconds": seconds[1:] or seconds})
    except (RuntimeError, MemoryError) as error:
        answer.send({"status": f"{type(error).__name__}: {str(error)[:200]}"})


def _resident(field: str) -> float:
    """MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(field + ":"))


def _give_back() -> None:
    """Free what loading used: the system's allocator would keep some of it."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
