"""Measure time and memory over vocabulary, length, batch and prompt, stock against balora: `python benchmarks/sweep.py`. Linux.

The model is small, so that the swept quantity dominates. Each point runs in a new process.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from pathlib import Path

from result_rows import Rows
from shapes import SMALL, TINY
from subprocess_run import measure

AXES = {
    "vocabulary": (32_000, 64_000, 128_256, 256_000),
    "length": (256, 1024, 4096, 8192),
    "batch": (1, 2, 4, 8),
    "prompt": (0.0, 0.5, 0.75, 0.9),
}
VARIANTS = ("stock", "online")


def main() -> None:
    """Parse the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try the script")
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    rows = Rows("sweep", given.output)
    for axis in given.axes:
        values = (AXES[axis][0],) if given.tiny else AXES[axis]
        for value in values:
            base = dataclasses.replace(TINY if given.tiny else SMALL, **({"batch": 1} if axis == "length" else {}))
            shape = dataclasses.replace(base, **{axis: value})
            for variant in VARIANTS:
                # The first step allocates. For long steps one more is enough.
                found = measure(variant, shape, steps=2 if shape.batch * shape.length > 4000 else 4, returned=True)
                seconds = found.pop("seconds", None)
                if seconds:
                    found["seconds"] = statistics.median(seconds)
                rows.add(kind="point", axis=axis, value=value, variant=variant, shape=shape, **found)


if __name__ == "__main__":
    main()
