"""Measure on a GPU: steps of a 7B-shaped model and of one with V 128 256, the loss alone, and a PiSSA initialisation.

`python benchmarks/gpu.py` (with `src` on PYTHONPATH if balora is not installed) needs torch, transformers, peft and balora's
core. It should take under 8 minutes on an H200; `--parts` selects a part of it. One model is loaded for each shape, and
every variant steps in turns on it, so the variants differ in their layers and their loss only. `--tiny` tries the script on
any machine.

Expected times, at 400 Tflop/s in bfloat16 and 50 in float32 (the adapters): a 7B forward over 2,048 tokens is 27 Tflop, and
1.3 in float32. A stock step is twice that forward (the weights are frozen) and the adapters' own gradients: 0.22 s, with
checkpointing 0.31 s. balora with the teacher's forward takes 0.32 s and 0.41 s. Six variants of two warm-up steps and four
rounds take 11 + 14 s, so loading, initialising and caching the model are most of ``7b``: one to two minutes, and the same for
``8b``. ``loss`` is 0.8 Tflop (3.2 with V 128 256) a call; 200 calls with the lower bounds and the Triton form, which is
compiled a dozen times, take half a minute. ``start`` is two exact decompositions of up to 11008 × 4096 in float32, half a
minute each, and a few seconds more. In all 4 to 6 minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import time
import traceback
from pathlib import Path

import torch

import balora
import loss_only
import pissa_start
import variants
from balora.methods.initial_state import trainable_parameters
from result_rows import Rows, ratios, summary
from shapes import LLAMA_7B, LLAMA_8B, TINY, Shape
from variants import Variant, load, optimizer_of, prepare

# Variants that need more memory beside the model come later, so that their memory is not in the peak of the others.
ORDER = ("stock", "forward", "offloaded", "online", "cached", "off", "anchored")
PARTS = ("loss", "7b", "8b", "start")


class Clock:
    """Seconds and peak memory of a call on a GPU, seconds on a CPU."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"

    def wait(self) -> float:
        """Wait for the device and return the time."""
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def allocated(self, peak: bool = False) -> float | None:
        """Return the allocated MiB, or their peak since `reset_peak`; None without a GPU."""
        if not self.cuda:
            return None
        return (torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()) / 2**20

    def reset_peak(self) -> None:
        """Free unused memory and reset the peak."""
        if self.cuda:
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def measure(rows: Rows, shape: Shape, rounds: int, device: str, names: tuple[str, ...], profiled: bool = False) -> None:
    """Measure all variants on one loaded model: a peak for each, then times in turns, then a profile of some."""
    clock, temporary = Clock(device), contextlib.ExitStack()
    begun = clock.wait()
    model = load("online", shape, device)
    loaded = clock.allocated()
    rows.add(kind="load", shape=shape, seconds=clock.wait() - begun, loaded_mib=loaded)
    batches = shape.batches(2, device)
    initial = {name: p.detach().cpu().clone() for name, p in trainable_parameters(model)}
    for checkpointing in (False, True):
        here = dataclasses.replace(shape, checkpointing=checkpointing)
        if not checkpointing:
            model.gradient_checkpointing_disable()
        ready: dict[str, Variant] = {}
        optimizer, own_teacher = optimizer_of(model), None
        _reset(model, initial)
        seconds: dict[str, list[float]] = {}
        peaks: dict[str, float | None] = {}
        for name in names:
            try:
                clock.reset_peak()
                if name in ("offloaded", "online"):
                    own_teacher = balora.PretrainedTeacher(model, initial, offload=name == "offloaded")
                ready[name], opened = prepare(name, here, model, batches, own_teacher=own_teacher, optimizer=optimizer)
                temporary.enter_context(opened)
                ready[name].step(batches[0])  # warm-up: makes what is made once
                # The second step has the peak of a normal step.
                before = clock.allocated()
                clock.reset_peak()
                ready[name].step(batches[1])
                peaks[name] = clock.allocated(peak=True)
                seconds[name] = []
                rows.add(
                    kind="peak", variant=name, shape=here, peak_mib=peaks[name], held_mib=before, loaded_mib=loaded
                )
            except torch.OutOfMemoryError as error:
                ready.pop(name, None)
                optimizer.zero_grad()
                rows.add(kind="peak", variant=name, shape=here, status=f"out of memory: {str(error)[:120]}")
        for turn in range(rounds):
            for name in list(seconds) if turn % 2 else list(seconds)[::-1]:
                begun = clock.wait()
                ready[name].step(batches[turn % 2])
                seconds[name].append(clock.wait() - begun)
        for name, times in seconds.items():
            rows.add(kind="variant", variant=name, shape=here, seconds=summary(times), all=times)
        _ratios(rows, here, seconds, peaks)
        if profiled:
            for name in [n for n in ("stock", "online", "cached") if n in ready]:
                rows.add(kind="profile", variant=name, shape=here, kernels=_profile(ready[name], batches[0]))
        del ready, own_teacher, optimizer
        temporary.close()
    del model
    clock.reset_peak()


def _profile(variant: Variant, batch: dict[str, torch.Tensor], most: int = 25) -> list[dict[str, object]]:
    """Return the kernels of one step that take the most time: name, calls, milliseconds on the device and on the host."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        variant.step(batch)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    events = sorted(
        profile.key_averages(), key=lambda e: (e.self_device_time_total, e.self_cpu_time_total), reverse=True
    )
    return [
        {
            "name": event.key[:90],
            "calls": event.count,
            "device_ms": event.self_device_time_total / 1000,
            "host_ms": event.self_cpu_time_total / 1000,
        }
        for event in events[:most]
    ]


@torch.no_grad()
def _reset(model: torch.nn.Module, initial: dict[str, torch.Tensor]) -> None:
    for name, parameter in trainable_parameters(model):
        parameter.copy_(initial[name])


def _ratios(rows: Rows, shape: Shape, seconds: dict[str, list[float]], peaks: dict[str, float | None]) -> None:
    for name in seconds:
        if name in ("stock", "forward") or "stock" not in seconds:
            continue
        row = {"above": name, "below": "stock", "shape": shape, "ratio": ratios(seconds[name], seconds["stock"])}
        if "forward" in seconds:
            floor = [a + b for a, b in zip(seconds["stock"], seconds["forward"], strict=True)]
            row["over_floor"] = ratios(seconds[name], floor)
        if name == "anchored" and "off" in seconds:
            row["over_off"] = ratios(seconds[name], seconds["off"])
            own, off = peaks[name], peaks["off"]
            row["peak_over_off"] = own / off if own and off else None
        ours, stock = peaks[name], peaks["stock"]
        rows.add(kind="ratio", peak_ratio=ours / stock if ours and stock else None, **row)


def main() -> None:
    """Parse the arguments and measure. A part that fails becomes a row, and the others still run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try the script on any machine")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--reference", action="store_true", help="measure the plain reading too, with its second model")
    parser.add_argument("--profile", action="store_true", help="profile a step of stock, online and cached too")
    parser.add_argument("--output", type=Path, help="directory for the rows")
    given = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not given.tiny:
        raise SystemExit("No GPU here. Try the script with --tiny.")
    rows = Rows("gpu", given.output)
    names = (*ORDER, "reference") if given.reference else ORDER
    begun = time.perf_counter()
    for part, shape in (("7b", LLAMA_7B), ("8b", LLAMA_8B)):
        if given.tiny:
            shape = dataclasses.replace(TINY, dtype=shape.dtype, name=f"tiny for {shape.name}")
        if "loss" in given.parts:
            for decaying in (True, False):
                _attempt(rows, "loss", lambda s=shape, d=decaying: loss_only.measure(rows, s, given.rounds, device, d))
        if part in given.parts:
            _attempt(rows, part, lambda s=shape: measure(rows, s, given.rounds, device, names, given.profile))
    if "start" in given.parts:
        sizes = {(96, 64): 2, (64, 96): 1} if given.tiny else pissa_start.SHAPES
        _attempt(rows, "start", lambda: pissa_start.measure(rows, sizes, 8 if given.tiny else pissa_start.RANK, device))
    rows.add(kind="total", seconds=time.perf_counter() - begun, weights=variants.WEIGHTS)


def _attempt(rows: Rows, part: str, work) -> None:
    try:
        work()
    except Exception as error:
        rows.add(kind="failure", part=part, status=f"{type(error).__name__}: {error}", trace=[traceback.format_exc()])
        traceback.print_exc()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
