"""Task loss over the steps of training, by method and rank (figure 2)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from balora.experiments.compare import Comparison
from balora.experiments.compare.statistics import MeanStd
from balora.experiments.compare.tables import cell_text, markdown_table
from balora.experiments.reproduce.experiment import Results
from balora.plots.curves import Panel, Point, curves_figure
from balora.training.callbacks import METRICS, read_metrics

RANK = "method.rank"
BASELINE = "pissa"
WINDOW = 5
"""Logged values that a point of a curve is the mean of; single values vary with the batches."""
LAST = 0.1
"""Share of the steps, at the end, that the final loss is taken over."""
Curve = tuple[list[float], list[float]]
"""Steps, and the task loss logged at each."""
Curves = Mapping[tuple[str, Any], Mapping[int, Curve]]
"""Curves by variant and rank, then by seed."""


def loss_curves(results: Results) -> list[str]:
    """Draw the curves, and return the figure and a table of the loss at the end of training."""
    panels, tables = [], []
    for study in results.studies:
        if study.name not in results.comparisons:
            continue
        curves, ranks = read_curves(results.comparisons[study.name]), study.axes[RANK]
        for rank in ranks:
            lines = {name: mean_line(by_seed) for (name, found), by_seed in curves.items() if found == rank}
            title = f"{study.title}, rank {rank}"
            panels += (
                [Panel(title=title, x_label="step", y_label="task loss (nats per target token)", series=lines)]
                if lines
                else []
            )
        tables.append(f"### {study.title}: the task loss at the end of training\n\n{end_table(curves, ranks)}")
    written = curves_figure(panels, results.directory / results.experiment.name) if panels else []
    image = [f"![Task loss over steps]({written[0].name})"] if written else []
    caption = (
        "The task loss without the regularizers, on the training batches. Each point is the mean of "
        f"{WINDOW} logged values and of all seeds; the band is one standard deviation over seeds. All methods see the same batches "
        f"in the same order on the same seed. The table has the mean over the last {LAST:.0%} of the steps, and below it the "
        "difference to PiSSA on the same seed. A low training loss is no result by itself."
    )
    return ["## Curves", *image, caption, *tables]


def read_curves(comparison: Comparison) -> dict[tuple[str, Any], dict[int, Curve]]:
    """Read the task loss of every finished run from its metrics."""
    curves: dict[tuple[str, Any], dict[int, Curve]] = {}
    for row in comparison.rows:
        if row.status != "finished" or comparison.directory is None:
            continue
        lines = read_metrics(comparison.directory / "runs" / row.run / METRICS)
        points = [(line["step"], line["task"]) for line in lines if isinstance(line.get("task"), int | float)]
        finite = [(float(step), float(value)) for step, value in points if math.isfinite(value)]
        if finite:
            steps, values = map(list, zip(*finite, strict=True))
            curves.setdefault((row.variant, row.axes.get(RANK)), {})[row.seed] = (steps, values)
    return curves


def mean_line(by_seed: Mapping[int, Curve], window: int = WINDOW) -> list[Point]:
    """Return the mean over seeds of smoothed curves, at the steps that all of them have.

    Example:
        >>> mean_line({1: ([1.0, 2.0], [4.0, 2.0]), 2: ([1.0, 2.0], [6.0, 4.0])}, window=1)[0]
        Point(x=1.0, mean=5.0, deviation=1.4142135623730951)
    """
    smooth = [dict(zip(steps, running_mean(values, window), strict=True)) for steps, values in by_seed.values()]
    shared = sorted(set.intersection(*(set(points) for points in smooth)))
    spreads = {step: MeanStd.of([points[step] for points in smooth]) for step in shared}
    known = {step: spread for step, spread in spreads.items() if spread is not None}
    return [Point(step, mean.mean, mean.deviation) for step, mean in known.items()]


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Return, for each value, the mean of the last ``window`` values up to it.

    Example:
        >>> running_mean([1.0, 3.0, 5.0], 2)
        [1.0, 2.0, 4.0]
    """
    return [statistics.fmean(values[max(0, end - window) : end]) for end in range(1, len(values) + 1)]


def end_table(curves: Curves, ranks: Sequence[Any]) -> str:
    """Return a table with a row per method and a column per rank: the loss at the end, and its difference to PiSSA's."""
    ends = {key: {seed: _end(values) for seed, (_, values) in by_seed.items()} for key, by_seed in curves.items()}
    lines = []
    for name in dict.fromkeys(variant for variant, _ in ends):
        cells = [_end_cell(ends.get((name, rank), {}), ends.get((BASELINE, rank), {}), name) for rank in ranks]
        lines.append([name, *cells])
    return markdown_table(["method", *(f"rank {rank}" for rank in ranks)], lines)


def _end(values: Sequence[float]) -> float:
    return statistics.fmean(values[-max(1, round(LAST * len(values))) :])


def _end_cell(own: Mapping[int, float], base: Mapping[int, float], name: str) -> str:
    text = cell_text(MeanStd.of(list(own.values())), len(own))
    gap = MeanStd.of([own[seed] - base[seed] for seed in own if seed in base])
    if name == BASELINE or gap is None:
        return text
    return f"{text}<br>{gap.mean:+.4f}{'' if gap.deviation is None else f' ± {gap.deviation:.4f}'}"
