"""Tables and the plot of the rows of `gpu_session.py`, for docs/results/gpu.md."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

Row = Mapping[str, Any]
NONE = "No rows yet: `python benchmarks/gpu_session.py` writes them on a machine with a GPU."
DRAWS = 4000
"""Draws of the bootstrap over seeds and documents."""
VARIANTS = {
    "plain": "BA-LoRA",
    "anchored": "BA-LoRA, anchored, weight 5",
    "budget": "BA-LoRA, anchored, budget 0.02",
}
NUMBERS = {
    "autocast": ("bfloat16 autocast: loss against float32, with student and teacher apart", "loss"),
    "flash": ("attention: flash backend against eager float32, loss", "flash, full"),
    "compile": ("torch.compile: loss of a step against eager", "loss"),
    "fused_adamw": ("fused AdamW: weights' change against the plain form", "fused"),
}


def cuda_only_table(rows: Sequence[Row]) -> str:
    """Return what only a GPU shows: a line for each check."""
    if not rows:
        return NONE
    lines = ["| check | found | allowed | |", "|---|---|---|---|"]
    for row in rows:
        what, found, allowed = _check(row)
        verdict = {True: "holds", False: "**does not hold**", None: "not measured"}[row.get("within")]
        lines.append(f"| {what} | {found} | {allowed} | {verdict if row['status'] == 'ok' else '**failed**'} |")
    return "\n".join(lines)


def _check(row: Row) -> tuple[str, str, str]:
    """Return what a row of `cuda_only.py` measured, what it found and what is allowed."""
    kind = row["kind"]
    if row["status"] != "ok":
        return kind, str(row["status"]).replace("|", "/").replace("\n", " ")[:300], ""
    if kind in NUMBERS:
        what, name = NUMBERS[kind]
        found = f"{row['differences'][name]:.1e}" if row["differences"][name] is not None else "refused"
        return what, found + _further(row), f"{row['bound']:g}"
    if kind == "random_state":
        off = "bitwise equal" if row["bitwise"] else f"{row['resumed_difference']:.1e} of the change"
        again = "equal" if row["repeated_difference"] == 0 else f"{row['repeated_difference']:.1e}"
        what = (
            f"resume after a kill at step {row['killed_at']} of {row['steps']}, dropout {row['dropout']:g}, "
            f"{row['kernels']} kernels"
        )
        return what, f"{off}; a repeated run: {again}", "equal, or as a repeated run"
    if kind == "four_bits":
        found = f"loss {row['first_loss']:.2f} → {row['last_loss']:.2f}, {row['layers']} layers, {row['peak_mib'] / 1024:.2f} GiB"
        return "4 bits (qbalora): trains, exports, loads", found, "the loss falls"
    if kind == "fsdp":
        name = "FSDP 2" if row["sharded"] else "two processes"
        seconds = row["step_seconds"]
        return (
            f"{name} on one machine: losses against unsharded", f"{row['loss_difference']:.1e}, "
            f"{seconds['fsdp']:.2f} s a step against {seconds['unsharded']:.2f}", f"{row['bound']:g}",
        )  # fmt: skip
    measured = row["measured_mib"]
    ratio = "–" if row["ratio"] is None else f"{row['ratio']:.2f}"
    what = (
        f"estimate of `balora validate` / allocator's peak, {row['model']} model of {row['parameters'] / 1e6:,.0f} M, "
        f"checkpointing {'on' if row['checkpointing'] else 'off'}"
    )
    return what, f"{ratio} of {(measured or 0) / 1024:.2f} GiB", "0.90 – 1.10"


def _further(row: Row) -> str:
    if row["kind"] == "compile":
        seconds = {name: found["median"] for name, found in row["seconds"].items()}
        times = f"{seconds['compiled']:.3f} s a step against {seconds['eager']:.3f}, first step {row['first_step_seconds']:.0f} s"
        return f" ({row['backend']}: {times}, {row['graphs']} graphs)" + (
            f" {row['problem']}" if row["problem"] else ""
        )
    if row["kind"] == "fused_adamw":
        seconds = {name: 1000 * found["median"] for name, found in row["seconds"].items()}
        return f" ({', '.join(f'{name} {value:.1f} ms' for name, value in seconds.items())})"
    if row["kind"] == "flash":
        off = row["differences"]
        padded = "refuses a mask" if off["flash, padded"] is None else f"{off['flash, padded']:.1e}"
        return f" (eager bfloat16 {off['eager, full']:.1e}; padded rows: sdpa {off['sdpa, padded']:.1e}, flash alone {padded})"
    return ""


def real_table(rows: Sequence[Row]) -> str:
    """Return the runs of `real_run.py`."""
    if not rows:
        return NONE
    head = ["run", "seconds a step", "peak GiB", "resumed at", "task loss", "drift, nats a token", "merged export: loss, drift",
            "agreement"]  # fmt: skip
    lines, notes = [_line(head), _line(["---"] * len(head))], []
    for row in rows:
        if row["status"] != "ok":
            notes.append(f"\n{row.get('variant', 'A run')}: {row['status']}")
            continue
        before, after, drift = row["loss_before"], row["loss_after"], row["drift"]
        said = row["exports"]["merged"]["said"]
        agreement = said[said.find("largest logit difference") :].rstrip(".") if "largest" in said else said
        lines.append(_line([
            VARIANTS[row["variant"]], f"{row['step_seconds']:.3f}", f"{row['peak_mib'] / 1024:.2f}", str(row["killed_at"] or "–"),
            f"{before['mean']:.3f} → {after['mean']:.3f} ± {after['error']:.3f}",
            f"{drift['mean']:.4f} ({drift['low']:.4f} – {drift['high']:.4f})",
            f"{row['merged_loss']:.3f}, {row['merged_drift']:.4f}", agreement,
        ]))  # fmt: skip
        metrics = row["metrics"]
        if "anchor_budget" in metrics:
            notes.append(
                f"\nBudget: {metrics['anchor_budget']:g} nats a token asked, {metrics['anchor_drift']:.4f} reached on anchors held "
                f"out, with weight {metrics['anchor_final_weight']:.3g} in the end."
            )
    return "\n".join([*lines, *notes])


def frontier_table(rows: Sequence[Row]) -> str:
    """Return task loss and drift of every setting of `pack.py`, over its seeds."""
    before = next((row for row in rows if row["kind"] == "before"), None)
    groups = _groups(rows)
    if before is None or not groups:
        return NONE
    lines = ["| setting | seeds | task loss | drift, nats a token | seconds a step |", "|---|---|---|---|---|"]
    lines.append(f"| pre-trained | | {before['loss']['mean']:.3f} | 0 | |")
    for name, runs in groups.items():
        found = []
        for score in ("loss", "drift"):
            values = [run[score]["mean"] for run in runs]
            spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
            found.append(f"{statistics.mean(values):.4f}{spread}")
        seconds = statistics.median(run.get("step_seconds", 0.0) for run in runs)
        lines.append(f"| {name} | {len(runs)} | {found[0]} | {found[1]} | {f'{seconds:.3f}' if seconds else ''} |")
    workers = next((row["workers"] for row in rows if row.get("workers")), 1)
    lines += [
        "",
        f"Mean ± standard deviation over the seeds. {workers} runs shared the card, so the seconds are not a run's alone.",
    ]
    return "\n".join(lines)


def comparisons_table(rows: Sequence[Row]) -> str:
    """Return each setting against the plain run of its method: difference in task loss, share of the drift that is left."""
    before = next((row for row in rows if row["kind"] == "before"), None)
    groups = _groups(rows)
    if before is None or not groups:
        return NONE
    lines = ["| setting | against | task loss, difference | drift that is left |", "|---|---|---|---|"]
    for name, runs in groups.items():
        plain = "lora" if name.startswith(("lora", "dft", "asft")) else "pissa"
        if name == plain or plain not in groups:
            continue
        pairs = [(run, other) for run in runs for other in groups[plain] if run["seed"] == other["seed"]]
        if len(pairs) < 2:
            lines.append(f"| {name} | {plain} | one seed | one seed |")
            continue
        ours, theirs = zip(*pairs, strict=True)
        loss = _crossed(ours, theirs, "loss", before["counts"]["loss"], lambda a, b: a - b)
        drift = _crossed(ours, theirs, "drift", before["counts"]["drift"], lambda a, b: a / b)
        lines.append(f"| {name} | {plain} | {_interval(loss, '+.4f')} | {_interval(drift, '.3f')} |")
    lines += [
        "",
        "With 95 % intervals of a bootstrap over seeds and documents together, not corrected for the number of lines.",
    ]
    return "\n".join(lines)


def frontier_plot(rows: Sequence[Row]) -> Figure:
    """Draw task loss against drift: a curve for each method and a point for each setting, mean over the seeds."""
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    plot, curves = figure.subplots(), {}
    for runs in _groups(rows).values():
        point = tuple(statistics.mean(run[score]["mean"] for run in runs) for score in ("drift", "loss"))
        # The plain run is the end of the curve of its scaled change.
        names = [runs[0]["curve"]] + ([f"{runs[0]['curve']} scaled"] if runs[0]["curve"] in ("lora", "pissa") else [])
        for name in names:
            curves.setdefault(name, []).append(point)
    for name, points in curves.items():
        line = dict(zip(("drift", "loss"), zip(*sorted(points), strict=True), strict=True))
        plot.plot(line["drift"], line["loss"], marker="o", markersize=4, label=name)
    plot.set_xscale("log")
    plot.set_xlabel("drift on other text, nats a token", fontsize=9)
    plot.set_ylabel("loss on the task", fontsize=9)
    plot.tick_params(labelsize=8)
    plot.spines[["top", "right"]].set_visible(False)
    if curves:
        plot.legend(frameon=False, fontsize=8)
    return figure


def _groups(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the runs by setting, in the order of the plan."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row["kind"] == "run" and row["status"] == "ok":
            detail = (
                f", weight {row['anchor']:g}"
                if row["anchor"]
                else f", a = {row['scale']:g}"
                if row["scale"] != 1
                else ""
            )
            groups.setdefault(row["curve"] + detail, []).append(row)
    return dict(sorted(groups.items()))


def _crossed(
    ours: Sequence[Row], theirs: Sequence[Row], score: str, counts: Sequence[int], compare: Any
) -> tuple[float, float, float]:
    """Return a comparison of two means with its 95 % interval; seeds and documents are drawn anew together, in pairs."""
    weights_D = np.asarray(counts, dtype=float)
    a_SD, b_SD = (np.array([run[score]["each"] for run in runs]) for runs in (ours, theirs))
    generator = np.random.default_rng(0)
    drawn = []
    for _ in range(DRAWS):
        seeds = generator.integers(len(a_SD), size=len(a_SD))
        documents = generator.integers(len(weights_D), size=len(weights_D))
        weights = weights_D[documents] / weights_D[documents].sum()
        drawn.append(compare(*((x_SD[seeds][:, documents] @ weights).mean() for x_SD in (a_SD, b_SD))))
    value = compare(*((x_SD @ (weights_D / weights_D.sum())).mean() for x_SD in (a_SD, b_SD)))
    return float(value), *(float(v) for v in np.quantile(drawn, (0.025, 0.975)))


def _interval(found: tuple[float, float, float], form: str) -> str:
    return f"{found[0]:{form}} ({found[1]:{form}} to {found[2]:{form}})"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
