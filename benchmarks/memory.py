"""Measure the peak memory of each variant above its loaded model, each in a new process: `python benchmarks/memory.py`. Linux."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from result_rows import Rows
from shapes import MAIN, TINY, WIDE
from subprocess_run import measure


def main() -> None:
    """Parse the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try the script")
    parser.add_argument("--variants", nargs="+", default=["stock", "online", "cached", "reference"])
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    rows = Rows("memory", given.output)
    main_shape, wide = (TINY, dataclasses.replace(TINY, vocabulary=401)) if given.tiny else (MAIN, WIDE)
    for shape, heap in ((main_shape, "default"), (main_shape, "returned"), (wide, "default")):
        peaks = {}
        for variant in given.variants:
            if variant == "reference" and heap == "returned":
                continue
            # One step is enough for the reference: it reaches its peak, and its SVD takes a minute with the wide vocabulary.
            found = measure(variant, shape, steps=1 if variant == "reference" else 2, returned=heap == "returned")
            rows.add(kind="variant", variant=variant, heap=heap, shape=shape, **found)
            peaks[variant] = found.get("peak_mib")
        for variant, peak in peaks.items():
            if peak and peaks.get("stock") and variant != "stock":
                ratio = peak / peaks["stock"]
                rows.add(kind="ratio", above=variant, below="stock", heap=heap, shape=shape, ratio=ratio)


if __name__ == "__main__":
    main()
