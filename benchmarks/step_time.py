"""Measure the step time of all variants, in turns over the same batches: `python benchmarks/step_time.py`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from result_rows import Rows, ratios, summary
from shapes import MAIN, TINY, Shape
from variants import load, prepare, same_as_reference

ORDER = ("stock", "online", "cached", "off", "forward", "reference")
PAIRS = (("online", "stock"), ("cached", "stock"), ("off", "stock"), ("reference", "online"), ("forward", "stock"))


def measure(shape: Shape, rounds: int, slow_rounds: int, output: Path | None, clock=time.perf_counter) -> None:
    """Write a row for each variant and each ratio, and one for the difference from the plain reading."""
    rows = Rows("step_time", output)
    rows.add(kind="equality", shape=shape, **same_as_reference(shape))
    batches = shape.batches(2)
    variants = {}
    for name in ORDER:
        variants[name], _open = prepare(name, shape, load(name, shape), batches)
        variants[name].step(batches[0])  # warm-up: allocations, the spectral basis, the check of the head
        variants[name].keep_open = _open
    seconds: dict[str, list[float]] = {name: [] for name in ORDER}
    for turn in range(rounds):
        order = ORDER if turn % 2 else ORDER[::-1]
        for name in order:
            if name == "reference" and turn >= slow_rounds:
                continue
            begun = clock()
            variants[name].step(batches[turn % 2])
            seconds[name].append(clock() - begun)
    tokens = shape.batch * shape.length
    for name, times in seconds.items():
        took = summary(times)
        rows.add(
            kind="variant",
            variant=name,
            shape=shape,
            seconds=took,
            tokens_per_second=tokens / took["median"],
            all=times,
        )
    for above, below in PAIRS:
        n = min(len(seconds[above]), len(seconds[below]))
        rows.add(
            kind="ratio", above=above, below=below, shape=shape, ratio=ratios(seconds[above][:n], seconds[below][:n])
        )


def main() -> None:
    """Parse the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try the script")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--slow-rounds", type=int, default=3, help="rounds of the reference")
    parser.add_argument("--cpu-time", action="store_true", help="count CPU seconds, for a machine with other work")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    clock = time.process_time if given.cpu_time else time.perf_counter
    measure(TINY if given.tiny else MAIN, given.rounds, given.slow_rounds, given.output, clock)
    print("threads", torch.get_num_threads())


if __name__ == "__main__":
    main()
