"""What the rows of `phases.py` and of the loss alone say, as tables: why a target is missed, and what could be won."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
WORTH = 1.3
"""What the Triton form has to win in the whole loss to be the default."""


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
    """The loss alone, torch's form and Triton's, beside its floor, on a GPU.

    Args:
        rows: Those of kind ``loss``.
    """
    if not rows:
        return (
            "Not decided: no GPU has been available. `python benchmarks/gpu.py --parts loss` on one measures both forms in a "
            "minute, `make bench-report` fills in this table."
        )
    head = ["shape", "loss, ms", "with Triton, ms", f"torch / Triton, {WORTH} wanted", "without the spectrum, ms",
            "with Triton, ms", "torch / Triton", "its three products, ms", "Tflop/s of these",
            "a kernel could win at most"]  # fmt: skip
    lines, notes = [_line(head), _line(["---"] * len(head))], []
    for row in rows:
        ms = {name: f"{1000 * found['median']:.2f}" for name, found in row["seconds"].items()}
        triton = row.get("triton") or {}
        if "failed" in triton:
            notes.append(f"{row['shape']['name']}: the Triton form did not run. {triton['failed']}")
        wins = {name: found["median"] for name, found in triton.get("torch_over_triton", {}).items()}
        cells = [row["shape"]["name"]]
        for name in ("all", "tokens"):
            cells += [ms[name], ms.get(f"{name}, triton", "–"), f"{wins[name]:.2f} ×" if wins else "–"]
        if wins:
            cells[3] += ", reached" if wins["all"] >= WORTH else ", **missed**"
            off, launches = triton["differences"], triton["launches"]
            best = min(launches, key=launches.__getitem__)
            notes.append(
                f"{row['shape']['name']}: the loss differs by {off['loss']:.0e} of itself, the gradient by {off['gradient']:.0e}; "
                f"the fastest of {len(launches)} lanes / warps to a row was {best}, {1000 * launches[best]:.2f} ms."
            )
        cells += [ms["products"], f"{row['product_tflops']:.0f}", f"{row['most_a_kernel_could_win']:.2f} ×"]
        lines.append(_line(cells))
    return "\n".join([*lines, *(f"\n{note}" for note in notes)])


def counted_table(rows: Sequence[Row], names: Mapping[str, str]) -> str:
    """Peaks of a step that were counted on the meta device.

    Args:
        rows: Of `counted.py`.
        names: Of the variants, as readers know them.
    """
    if not rows:
        return "No rows yet: `python benchmarks/counted.py` writes them."
    head = [
        "shape",
        "checkpointing",
        "variant",
        "model, GiB",
        "between steps, GiB",
        "peak, GiB",
        "in the",
        "over stock's",
    ]
    lines = [_line(head), _line(["---"] * len(head))]
    for row in rows:
        shape, phases = row["shape"], row["phases"]
        sizes = (f"{row[key] / 1024:.1f}" for key in ("loaded_mib", "held_mib", "peak_mib"))
        checkpointing = "yes" if shape["checkpointing"] else "no"
        where, over = max(phases, key=phases.__getitem__), f"{row['over_stock']:.3f}"
        lines.append(_line([shape["name"], checkpointing, names[row["variant"]], *sizes, where, over]))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(seconds: float, total: float) -> str:
    return f"{seconds:.2f} ({seconds / total:.0%})" if seconds else "–"
