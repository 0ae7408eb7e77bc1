"""Write the tables and plots of docs/explanation/cost.md and docs/results/gpu.md from the rows: `make bench-report`."""

from __future__ import annotations

import io
import re
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

import session_report
from phase_report import counted_table, loss_table, phases_table
from result_rows import read
from shapes import LLAMA_7B, MAIN, WIDE

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "explanation" / "cost.md"
GPU_PAGE = ROOT / "docs" / "results" / "gpu.md"
COST = ("step_time", "phases", "memory", "sweep", "classification", "pissa_start", "counted", "gpu")
SESSION = ("real_run", "cuda_only", "pack")
ASSETS = ROOT / "docs" / "assets"
NAMES = {
    "stock": "PiSSA in stock peft and transformers",
    "online": "balora, teacher at every step",
    "offloaded": "balora, teacher at every step, its values in host memory",
    "cached": "balora, teacher cached",
    "off": "balora, regularizers off",
    "anchored": "balora, regularizers off, anchored",
    "forward": "one forward of the stock model, no gradient",
    "reference": "a plain reading of BA-LoRA",
}
COLOURS = {"stock": "#E69F00", "online": "#009E73", "cached": "#56B4E9", "reference": "#999999", "off": "#0072B2"}
PEAK, PEAK_OFFLOADED = "CUDA, 7B shape: peak memory, ours online / stock", "the same with `teacher_offload`"
COUNTED = {PEAK: "online", PEAK_OFFLOADED: "offloaded"}
Row = dict[str, Any]


def main() -> None:
    """Fill in every table and draw every plot."""
    tables = {
        "targets": targets(),
        "steps": steps(),
        "memory": memory(),
        "start": start(),
        "gpu": gpu(),
        "counted": counted_table(read("counted"), NAMES),
        "phases": phases_table(read("phases"), NAMES),
        "loss": loss_table(_of("gpu", "loss")),
        "machine": machine(COST),
    }
    _fill(PAGE, tables)
    real, only, pack = map(read, SESSION)
    tables = {
        "real": session_report.real_table(real),
        "cuda_only": session_report.cuda_only_table(only),
        "frontier": session_report.frontier_table(pack),
        "comparisons": session_report.comparisons_table(pack),
        "machine": machine(SESSION),
    }
    _fill(GPU_PAGE, tables)
    ASSETS.mkdir(exist_ok=True)
    plots = (("cost-sweep", "sweep", sweep_plot), ("cost-variants", "step_time", variants_plot),
             ("gpu-frontier", "pack", lambda: session_report.frontier_plot(pack)))  # fmt: skip
    for name, rows, draw in plots:
        _save(draw() if read(rows) else _empty(rows), f"{name}.svg")


def _fill(page: Path, tables: dict[str, str]) -> None:
    """Put each table between its marks."""
    text = page.read_text()
    for name, table in tables.items():
        mark = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        assert mark.search(text), f"{page.name} has no place for {name}"
        text = mark.sub(lambda found, table=table: f"{found[1]}\n{table}\n\n{found[2]}", text)
    page.write_text(text)


def targets() -> str:
    """Return the targets and their measured values."""
    lines = ["| what | target | measured | |", "|---|---|---|---|"]
    found = [
        ("step time, ours online / stock PiSSA", "≤ 1.20", _ratio("step_time", "online", "stock")),
        ("step time, ours cached / stock PiSSA", "≤ 0.90", _ratio("step_time", "cached", "stock")),
        ("step time, plain reading / ours online", "≥ 3.0", _ratio("step_time", "reference", "online")),
        (
            "peak memory above the loaded model, ours online / stock",
            "≤ 0.70",
            _ratio("memory", "online", "stock", MAIN.name),
        ),
        (
            "the same, freed blocks returned at once",
            "≤ 0.70",
            _ratio("memory", "online", "stock", MAIN.name, "returned"),
        ),
        ("peak memory at V 128 256, ours online / stock", "≤ 0.40", _ratio("memory", "online", "stock", WIDE.name)),
        ("classification, 3 epochs, cached / stock PiSSA", "≤ 1.05", _ratio("classification", "cached", "stock")),
        ("CUDA, 7B shape: ours online / (stock + one forward)", "≤ 1.05", _over_floor("online")),
        (PEAK, "≤ 1.00", _gpu_peak("online")),
        (PEAK_OFFLOADED, "≤ 1.00", _gpu_peak("offloaded")),
        ("and its time over (stock + one forward)", "≤ 1.05", _over_floor("offloaded")),
        ("CUDA, 7B shape: anchored / without, a quarter of the task's tokens", "≤ 1.29", _anchored("over_off")),
        ("its peak memory / without", "≤ 1.02", _anchored("peak_over_off")),
        ("PiSSA start, 7B shape, CUDA, seconds", "≤ 30", _start_seconds()),
    ]
    counted = {what: worst for what, name in COUNTED.items() if (worst := _counted(name)) is not None}
    for what, target, value in found:
        bound = float(target.split()[1])
        good = value is not None and (value >= bound if target[0] == "≥" else value <= bound)
        verdict = "not measured yet" if value is None else "reached" if good else "**missed**"
        if value is None and what in counted:
            verdict += f", {counted[what]:.2f} [counted](#counted)"
        lines.append(f"| {what} | {target} | {'–' if value is None else f'{value:.2f}'} | {verdict} |")
    return "\n".join(lines)


def steps() -> str:
    """Return seconds and tokens per second of each variant."""
    rows = _of("step_time", "variant")
    if not rows:
        return _no_rows("step_time")
    lines = ["| variant | seconds a step | quartiles | tokens a second |", "|---|---|---|---|"]
    for row in sorted(rows, key=lambda row: row["seconds"]["median"]):
        s = row["seconds"]
        quartiles = f"{s['low']:.2f} – {s['high']:.2f}"
        lines.append(f"| {NAMES[row['variant']]} | {s['median']:.2f} | {quartiles} | {row['tokens_per_second']:,.0f} |")
    equal = _of("step_time", "equality")[0]
    lines += [
        "",
        "Before the timing, balora and the plain reading are compared on the same weights, near the initial state: the loss "
        f"differs by a relative {equal['loss']:.0e}, the gradient by {equal['gradient']:.0e}.",
    ]
    return "\n".join(lines)


def memory() -> str:
    """Return the peak memory of each variant."""
    rows = _of("memory", "variant")
    if not rows:
        return _no_rows("memory")
    lines = ["| variant | vocabulary | freed blocks | peak above the loaded model, MiB | over stock |"]
    lines.append("|---|---|---|---|---|")
    stock = {(r["shape"]["vocabulary"], r["heap"]): r.get("peak_mib") for r in rows if r["variant"] == "stock"}
    for row in rows:
        size, peak = row["shape"]["vocabulary"], row.get("peak_mib")
        base = stock.get((size, row["heap"]))
        heap = "returned" if row["heap"] == "returned" else "as the C library handles them"
        found = row["status"] if peak is None else f"{peak:,.0f}"
        over = f"{peak / base:.2f}" if peak and base else ""
        lines.append(f"| {NAMES[row['variant']]} | {size:,} | {heap} | {found} | {over} |")
    return "\n".join(lines)


def start() -> str:
    """Return seconds and error of a PiSSA initialisation."""
    rows = _of("pissa_start", "model")
    if not rows:
        return _no_rows("pissa_start")
    lines = [
        "| decomposition | device | seconds for all 224 matrices | error over the exact one's |",
        "|---|---|---|---|",
    ]
    names = {"exact": "exact", "ours": "ours, randomised, 6 iterations", "peft_niter_16": "peft, `pissa_niter_16`"}
    lines += [
        f"| {names[r['method']]} | {r['where']} | {r['seconds']:,.0f} | {r['error_over_exact']:.5f} |" for r in rows
    ]
    return "\n".join(lines)


def gpu() -> str:
    """Return the ratios of the GPU script."""
    rows = _of("gpu", "ratio")
    if not rows:
        return "Not measured yet: `make bench-gpu` on a machine with a GPU writes the rows, and `make bench-report` this table."
    peaks = {(r["variant"], r["shape"]["name"], r["shape"]["checkpointing"]): r for r in _of("gpu", "peak")}
    lines = ["| shape | checkpointing | variant | over stock | over stock + one forward | peak GiB | over stock's |"]
    lines.append("|---|---|---|---|---|---|---|")
    for r in rows:
        shape = r["shape"]
        peak = peaks[(r["above"], shape["name"], shape["checkpointing"])].get("peak_mib")
        floor = f"{r['over_floor']['median']:.2f}" if "over_floor" in r else "–"
        lines.append(
            f"| {shape['name']} | {'yes' if shape['checkpointing'] else 'no'} | {NAMES[r['above']]} | {r['ratio']['median']:.2f} | "
            f"{floor} | {(peak or 0) / 1024:.1f} | {r['peak_ratio'] or 0:.3f} |"
        )
    failed = [r for r in read("gpu") if r["status"] != "ok"]
    lines += [f"\n{r.get('variant', r.get('part', r['kind']))}: {r['status']}" for r in failed]
    return "\n".join(lines)


def machine(names: Iterable[str]) -> str:
    """Return machine, versions and commit of each script's rows."""
    lines = []
    for name in names:
        rows = read(name)
        if rows:
            row = rows[-1]
            hardware, versions = row["hardware"], row["versions"]
            commits = dict.fromkeys(map(_commit, rows))  # some rows may have been measured again later
            lines.append(
                f"- `{name}`: {hardware['device']}, {hardware['threads']} threads, torch {versions['torch']}, transformers "
                f"{versions['transformers']}, peft {versions['peft']}, {row['time'][:10]}, commit {' and '.join(commits)}"
            )
    return "\n".join(lines) or "No rows yet."


def sweep_plot() -> Figure:
    """Draw time and memory over each axis, for stock and balora."""
    rows = [row for row in _of("sweep", "point") if row["status"] == "ok"]
    axes_of = list(dict.fromkeys(row["axis"] for row in rows))
    titles = {"vocabulary": "vocabulary, thousands", "length": "tokens of one sequence", "batch": "sequences of 256",
              "prompt": "fraction of prompt"}  # fmt: skip
    figure = Figure(figsize=(2.6 * len(axes_of), 4.6), layout="constrained")
    grid = figure.subplots(2, len(axes_of), squeeze=False)
    for column, axis in enumerate(axes_of):
        for line, (key, label) in enumerate((("seconds", "seconds a step"), ("peak_mib", "peak MiB above the model"))):
            plot = grid[line][column]
            for variant in ("stock", "online"):
                points = [(row["value"], row[key]) for row in rows if row["axis"] == axis and row["variant"] == variant]
                xs = [x / 1000 if axis == "vocabulary" else x for x, _ in points]
                plot.plot(xs, [y for _, y in points], marker="o", markersize=3, color=COLOURS[variant],
                          label={"stock": "stock PiSSA", "online": "balora"}[variant])  # fmt: skip
            plot.set_ylim(bottom=0)
            _finish(plot, titles[axis] if line else "", label if not column else "")
    grid[0][0].legend(frameon=False, fontsize=8)
    return figure


def variants_plot() -> Figure:
    """Draw step time and peak memory of the variants as bars."""
    times = {row["variant"]: row["seconds"]["median"] for row in _of("step_time", "variant")}
    rows = [r for r in _of("memory", "variant") if r["shape"]["name"] == MAIN.name and r["heap"] == "default"]
    peaks = {row["variant"]: row.get("peak_mib") for row in rows}
    figure = Figure(figsize=(7.2, 2.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for plot, found, label in ((left, times, "seconds a step"), (right, peaks, "peak MiB above the model")):
        names = [name for name in ("reference", "stock", "online", "cached") if found.get(name)]
        plot.barh(range(len(names)), [found[n] for n in names], color=[COLOURS[n] for n in names])
        short = {"reference": "plain reading", "stock": "stock PiSSA", "online": "balora", "cached": "balora, cached"}
        plot.set_yticks(range(len(names)), [short[n] for n in names])
        plot.invert_yaxis()
        _finish(plot, label, "")
    return figure


def _empty(name: str) -> Figure:
    figure = Figure(figsize=(5, 0.5))
    figure.text(0.02, 0.4, f"No rows yet: benchmarks/{name}.py writes them.", fontsize=9)
    return figure


def _finish(plot: Any, x: str, y: str) -> None:
    plot.set_xlabel(x, fontsize=9)
    plot.set_ylabel(y, fontsize=9)
    plot.tick_params(labelsize=8)
    plot.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, name: str) -> None:
    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    (ASSETS / name).write_text(buffer.getvalue())


def _of(name: str, kind: str) -> list[Row]:
    return [row for row in read(name) if row["kind"] == kind]


def _ratio(name: str, above: str, below: str, shape: str | None = None, heap: str = "default") -> float | None:
    for row in _of(name, "ratio"):
        found = (row["above"], row["below"], row.get("heap", "default"))
        if found == (above, below, heap) and shape in (None, row.get("shape", {}).get("name")):
            return row["ratio"]["median"] if isinstance(row["ratio"], dict) else row["ratio"]
    return None


def _gpu_rows(variant: str) -> Iterable[Row]:
    return (r for r in _of("gpu", "ratio") if r["above"] == variant and r["shape"]["name"] == LLAMA_7B.name)


def _over_floor(variant: str) -> float | None:
    found = [row["over_floor"]["median"] for row in _gpu_rows(variant) if "over_floor" in row]
    return max(found) if found else None


def _anchored(key: str) -> float | None:
    found = [row[key] for row in _gpu_rows("anchored") if row.get(key)]
    return max((value["median"] if isinstance(value, dict) else value for value in found), default=None)


def _gpu_peak(variant: str) -> float | None:
    found = [row["peak_ratio"] for row in _gpu_rows(variant) if row["peak_ratio"]]
    return max(found) if found else None


def _counted(variant: str) -> float | None:
    rows = [r for r in _of("counted", "peak") if r["shape"]["name"] == LLAMA_7B.name and r["variant"] == variant]
    return max((row["over_stock"] for row in rows), default=None)


def _start_seconds() -> float | None:
    found = [r["seconds"] for r in _of("gpu", "model") if r["method"] == "ours" and r["where"] == "cuda"]
    return statistics.median(found) if found else None


def _commit(row: Row) -> str:
    commit = row["commit"] or {"id": "unknown", "dirty": False}
    return commit["id"][:8] + (" with changes" if commit["dirty"] else "")


def _no_rows(name: str) -> str:
    return f"No rows yet: `python benchmarks/{name}.py` writes them."


if __name__ == "__main__":
    main()
