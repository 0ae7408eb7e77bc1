"""On a GPU: steps of a 7B-shaped model and of one with 128 k tokens of vocabulary, the loss alone, and a PiSSA start.

`python benchmarks/gpu.py` (with `src` on PYTHONPATH where balora is not installed) needs torch, transformers, peft and
balora's core; meant to take under 8 minutes on an H200, and `--parts` takes a part of it. One model is
loaded for each shape and every variant steps in turns on it, so that nothing differs but the layers' and the loss's way.
`--tiny` tries the script anywhere.

What it should take, at 400 Tflop/s in bfloat16 and 50 in float32 (the adapters): a 7B forward over 2,048 tokens is 27 Tflop
and 1.3 in float32, a stock step twice that forward (the weights are frozen) and the adapters' own gradients, 0.22 s, with
checkpointing 0.31; ours with the teacher's forward 0.32 and 0.41. Six variants of two steps to warm and four rounds are
11 + 14 s, so that making, starting and caching the model is most of ``7b``: one to two minutes; ``8b`` likewise. ``loss``
is 0.8 Tflop (3.2 at 128 k) a call, 200 calls with its floors and its Triton form, which is compiled a dozen times: half a
minute. ``start`` is two exact decompositions of up to
11008 × 4096 in float32, half a minute each, and seconds besides. In all 4 to 6 minutes.
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
import loss_alone
import pissa_start
import variants
from balora.methods.initial_state import trainable_parameters
from rows import Rows, ratios, summary
from shapes import LLAMA_7B, LLAMA_8B, TINY, Shape
from variants import Variant, load, optimizer_of, prepare

# What holds more beside the model comes later, so that nothing stands in the peak of one that does without it.
ORDER = ("stock", "forward", "offloaded", "online", "cached", "off")
PARTS = ("loss", "7b", "8b", "start")


class Clock:
    """Seconds and peak memory of a call, on whichever device there is."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"

    def wait(self) -> float:
        """The time, once the device is done."""
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def allocated(self, peak: bool = False) -> float | None:
        """MiB that the allocator has handed out, or the most since `forget`; None without a GPU."""
        if not self.cuda:
            return None
        return (torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()) / 2**20

    def forget(self) -> None:
        """Start the peak anew."""
        if self.cuda:
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def measure(rows: Rows, shape: Shape, rounds: int, device: str, names: tuple[str, ...]) -> None:
    """All variants in turns on one loaded model; time first, then a peak for each."""
    clock, temporary = Clock(device), contextlib.ExitStack()
    begun = clock.wait()
    model = load("online", shape, device)
    loaded = clock.allocated()
    rows.add(kind="load", shape=shape, seconds=clock.wait() - begun, loaded_mib=loaded)
    batches = shape.batches(2, device)
    start = {name: p.detach().cpu().clone() for name, p in trainable_parameters(model)}
    for checkpointing in (False, True):
        here = dataclasses.replace(shape, checkpointing=checkpointing)
        if not checkpointing:
            model.gradient_checkpointing_disable()
        ready: dict[str, Variant] = {}
        optimizer, own_teacher = optimizer_of(model), None
        _back_to(model, start)
        seconds: dict[str, list[float]] = {}
        peaks: dict[str, float | None] = {}
        for name in names:
            try:
                clock.forget()
                if name in ("offloaded", "online"):
                    own_teacher = balora.PretrainedTeacher(model, start, offload=name == "offloaded")
                ready[name], opened = prepare(name, here, model, batches, own_teacher=own_teacher, optimizer=optimizer)
                temporary.enter_context(opened)
                ready[name].step(batches[0])  # warm, with all that is made once
                # A second step for the peak: what is made once is not made again.
                before = clock.allocated()
                clock.forget()
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
        del ready, own_teacher, optimizer
        temporary.close()
    del model
    clock.forget()


@torch.no_grad()
def _back_to(model: torch.nn.Module, start: dict[str, torch.Tensor]) -> None:
    for name, parameter in trainable_parameters(model):
        parameter.copy_(start[name])


def _ratios(rows: Rows, shape: Shape, seconds: dict[str, list[float]], peaks: dict[str, float | None]) -> None:
    for name in seconds:
        if name in ("stock", "forward") or "stock" not in seconds:
            continue
        row = {"above": name, "below": "stock", "shape": shape, "ratio": ratios(seconds[name], seconds["stock"])}
        if "forward" in seconds:
            floor = [a + b for a, b in zip(seconds["stock"], seconds["forward"], strict=True)]
            row["over_floor"] = ratios(seconds[name], floor)
        ours, stock = peaks[name], peaks["stock"]
        rows.add(kind="ratio", peak_ratio=ours / stock if ours and stock else None, **row)


def main() -> None:
    """Read the options and measure; what fails is a row, and the rest goes on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="to try the script, on any machine")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--reference", action="store_true", help="the plain reading too, with its second model")
    parser.add_argument("--output", type=Path, help="folder for the rows")
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
            _attempt(rows, "loss", lambda s=shape: loss_alone.measure(rows, s, given.rounds, device))
        if part in given.parts:
            _attempt(rows, part, lambda s=shape: measure(rows, s, given.rounds, device, names))
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
