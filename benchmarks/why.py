"""What the rows of `phases.py` and of the loss alone say, as tables: why a target is missed, and what could be won."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def phases_table(rows: Sequence[Row], names: Mapping[str, str]) -> str:
    """Seconds and share of each phase in each variant, and what follows from the floor.

    Args:
        rows: Of `phases.py`.
        names: Of the variants, as readers know them.
    """
    variants = [row for row in rows if row["kind"] == "phases"]
    if not variants:
        return "No rows yet: `python benchmarks/phases.py` writes them."
    head = ["phase", *(names[row["variant"]] for row in variants)]
    lines = [_line(head), _line(["---"] * len(head))]
    lines += [
        _line([phase, *(_cell(row["seconds"][phase], row["total"]) for row in variants)])
        for phase in variants[0]["seconds"]
    ]
    lines.append(_line(["all", *(f"{row['total']:.2f}" for row in variants)]))
    floor = next(row for row in rows if row["kind"] == "floor")
    lines += [
        "",
        f"If every term were free, a step with the teacher would take {floor['seconds']:.2f} seconds: a step without "
        f"regularizers and the teacher's way to its hidden states. Ours takes {floor['online_over_floor']:.2f} times that, the "
        f"plain reading {floor['reference_over_floor']:.2f} times, which is what the ratio of the two could be at most on this "
        "machine without a faster model or a teacher that is remembered.",
    ]
    return "\n".join(lines)


def loss_table(rows: Sequence[Row]) -> str:
    """The loss alone beside its floor, on a GPU.

    Args:
        rows: Those of kind ``loss``.
    """
    if not rows:
        return (
            "Not decided: no GPU has been available. `make bench-gpu` has the loss alone as a part, so that the share a kernel "
            "could win is known."
        )
    lines = [
        "| shape | loss, ms | without the spectrum, ms | its three products, ms | Tflop/s of these | a kernel could win at most |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        ms = {name: 1000 * found["median"] for name, found in row["seconds"].items()}
        lines.append(
            f"| {row['shape']['name']} | {ms['all']:.2f} | {ms['tokens']:.2f} | {ms['products']:.2f} | "
            f"{row['product_tflops']:.0f} | {row['most_a_kernel_could_win']:.2f} × |"
        )
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(seconds: float, total: float) -> str:
    return f"{seconds:.2f} ({seconds / total:.0%})" if seconds else "–"
