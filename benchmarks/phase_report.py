"""Tables of the rows of `phases.py`, of the loss alone and of counted memory, for docs/explanation/cost.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
WORTH = 1.3
"""Speed-up of the loss, spectral term included, that makes the Triton form the default."""


def phases_table(rows: Sequence[Row], names: Mapping[str, str]) -> str:
    """Return seconds and fraction of each phase in each variant, and the lower bound of a step's time.

    Args:
        rows: Rows of `phases.py`.
        names: Readable names of the variants.
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
        f"regularizers, and the teacher's forward to its hidden states. balora takes {floor['online_over_floor']:.2f} times that, "
        f"the plain reading {floor['reference_over_floor']:.2f} times. So on this machine the ratio of the two can be at most "
        f"{floor['reference_over_floor']:.2f}, unless the model is faster or the teacher is cached.",
    ]
    return "\n".join(lines)


def loss_table(rows: Sequence[Row]) -> str:
    """Return the times of the loss alone on a GPU: torch form, Triton form and lower bound.

    Args:
        rows: Rows of kind ``loss``.
    """
    if not rows:
        return (
            "Not decided: no GPU has been available. On one, `python benchmarks/gpu.py --parts loss` measures both forms in a "
            "minute, and `make bench-report` fills in this table."
        )
    head = ["shape", "loss, ms", "with Triton, ms", f"torch / Triton, {WORTH} wanted", "without the spectrum, ms",
            "with Triton, ms", "torch / Triton", "its three products, ms", "Tflop/s of these",
            "a kernel could win at most"]  # fmt: skip
    lines, notes = [_line(head), _line(["---"] * len(head))], []
    for row in rows:
        name = f"{row['shape']['name']}, {row['spectrum']} spectrum" if "spectrum" in row else row["shape"]["name"]
        ms = {part: f"{1000 * found['median']:.2f}" for part, found in row["seconds"].items()}
        triton = row.get("triton") or {}
        if "failed" in triton:
            notes.append(f"{name}: the Triton form did not run. {triton['failed']}")
        wins = {part: found["median"] for part, found in triton.get("torch_over_triton", {}).items()}
        cells = [name]
        for part in ("all", "tokens"):
            cells += [ms[part], ms.get(f"{part}, triton", "–"), f"{wins[part]:.2f} ×" if wins else "–"]
        if wins:
            cells[3] += ", reached" if wins["all"] >= WORTH else ", **missed**"
            off, launches = triton["differences"], triton["launches"]
            best = min(launches, key=launches.__getitem__)
            notes.append(
                f"{name}: the loss differs by {off['loss']:.0e} of itself, the gradient by {off['gradient']:.0e}; "
                f"the fastest of {len(launches)} lanes / warps to a row was {best}, {1000 * launches[best]:.2f} ms."
            )
        cells += [ms["products"], f"{row['product_tflops']:.0f}", f"{row['most_a_kernel_could_win']:.2f} ×"]
        lines.append(_line(cells))
    return "\n".join([*lines, *(f"\n{note}" for note in notes)])


def counted_table(rows: Sequence[Row], names: Mapping[str, str]) -> str:
    """Return the peak memory of a step, as counted on the meta device.

    Args:
        rows: Rows of `meta_counts.py`.
        names: Readable names of the variants.
    """
    if not rows:
        return "No rows yet: `python benchmarks/meta_counts.py` writes them."
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
        sizes = (f"{row[key] / 1024:.1f}" for key in ("loaded_mib", "held_mib", "peak_mib"))  # held: between steps
        checkpointing = "yes" if shape["checkpointing"] else "no"
        where, over = max(phases, key=phases.__getitem__), f"{row['over_stock']:.3f}"
        lines.append(_line([shape["name"], checkpointing, names[row["variant"]], *sizes, where, over]))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(seconds: float, total: float) -> str:
    return f"{seconds:.2f} ({seconds / total:.0%})" if seconds else "–"
