"""Parts of a page that draw: losses over steps (figure 2), and scores over weights (4), precisions (5) and ranks (6)."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from balora.experiments.compare import Comparison
from balora.experiments.compare.statistics import MeanStd
from balora.experiments.compare.tables import cell_text, markdown_table
from balora.experiments.reproduce.experiment import Part, Results, Study
from balora.experiments.reproduce.variants import BALANCES, DEFAULT_WEIGHTS, SUM_LABEL, balanced
from balora.plots import curves, dot_plot
from balora.plots.curves import Estimate, Panel, Point
from balora.training.callbacks import METRICS, read_metrics

RANK = "method.rank"
_LAMBDA = "λ1 = "
_BASELINE = "pissa"
_WINDOW = 5
"""Number of logged values in the mean at each point of a loss curve; single values vary with the batches."""
_LAST = 0.1
"""Fraction of the steps, at the end of training, for the final loss."""
Curve = tuple[list[float], list[float]]
"""Steps, and the task loss logged at each."""
Curves = Mapping[tuple[str, Any], Mapping[int, Curve]]
"""Curves by variant and rank, then by seed."""


def _image(
    results: Results, title: str, panels: Sequence[Any], draw: Callable[[Sequence[Any], Path], list[Path]]
) -> list[str]:
    """Draw the experiment's figure and return the paragraph that shows it; nothing without panels."""
    if not panels:
        return []
    return [f"![{title}]({draw(panels, results.directory / results.experiment.name)[0].name})"]


def loss_curves(results: Results) -> list[str]:
    """Draw the task loss over the steps of training, by method and rank, with a table of the loss at the end."""
    panels, tables = [], []
    for study in results.studies:
        if study.name not in results.comparisons:
            continue
        found, ranks = read_curves(results.comparisons[study.name]), study.axes[RANK]
        for rank in ranks:
            title = f"{study.title}, rank {rank}"
            if lines := {name: mean_line(by_seed) for (name, own), by_seed in found.items() if own == rank}:
                y_label = "task loss (nats per target token)"
                panels.append(Panel(title=title, x_label="step", y_label=y_label, series=lines))
        tables.append(f"### {study.title}: the task loss at the end of training\n\n{end_table(found, ranks)}")
    caption = (
        f"The task loss without the regularizers, on the training batches. Each point is the mean of {_WINDOW} logged values and "
        "of all seeds; the band is one standard deviation over seeds. All methods see the same batches in the same order on the "
        f"same seed. The table has the mean over the last {_LAST:.0%} of the steps, and below it the difference to PiSSA on the "
        "same seed. A low training loss is no result by itself."
    )
    return ["## Curves", *_image(results, "Task loss over steps", panels, curves.curves_figure), caption, *tables]


def read_curves(comparison: Comparison) -> dict[tuple[str, Any], dict[int, Curve]]:
    """Read the task loss of every finished run from its metrics."""
    found: dict[tuple[str, Any], dict[int, Curve]] = {}
    for row in comparison.rows:
        if row.status != "finished" or comparison.directory is None:
            continue
        lines = read_metrics(comparison.directory / "runs" / row.run / METRICS)
        points = [(line["step"], line["task"]) for line in lines if isinstance(line.get("task"), int | float)]
        finite = [(float(step), float(value)) for step, value in points if math.isfinite(value)]
        if finite:
            steps, values = map(list, zip(*finite, strict=True))
            found.setdefault((row.variant, row.axes.get(RANK)), {})[row.seed] = (steps, values)
    return found


def mean_line(by_seed: Mapping[int, Curve], window: int = _WINDOW) -> list[Point]:
    """Return the mean over seeds of smoothed curves, at the steps that all of them have.

    Example:
        >>> mean_line({1: ([1.0, 2.0], [4.0, 2.0]), 2: ([1.0, 2.0], [6.0, 4.0])}, window=1)[0]
        Point(x=1.0, mean=5.0, deviation=1.4142135623730951)
    """
    smooth = [dict(zip(steps, running_mean(values, window), strict=True)) for steps, values in by_seed.values()]
    common = sorted(set.intersection(*(set(points) for points in smooth)))
    means = [(step, MeanStd.of([points[step] for points in smooth])) for step in common]
    return [Point(step, mean.mean, mean.deviation) for step, mean in means if mean is not None]


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Return, for each value, the mean of the last ``window`` values up to it.

    Example:
        >>> running_mean([1.0, 3.0, 5.0], 2)
        [1.0, 2.0, 4.0]
    """
    return [statistics.fmean(values[max(0, end - window) : end]) for end in range(1, len(values) + 1)]


def end_table(curves: Curves, ranks: Sequence[Any]) -> str:
    """Return a table with a row per method and a column per rank: the loss at the end, and its difference to PiSSA's."""
    ends = {
        key: {
            seed: statistics.fmean(values[-max(1, round(_LAST * len(values))) :]) for seed, (_, values) in own.items()
        }
        for key, own in curves.items()
    }
    lines = []
    for name in dict.fromkeys(variant for variant, _ in ends):
        cells = [_end_cell(ends.get((name, rank), {}), ends.get((_BASELINE, rank), {}), name) for rank in ranks]
        lines.append([name, *cells])
    return markdown_table(["method", *(f"rank {rank}" for rank in ranks)], lines)


def _end_cell(own: Mapping[int, float], base: Mapping[int, float], name: str) -> str:
    text = cell_text(MeanStd.of(list(own.values())), len(own))
    gap = MeanStd.of([own[seed] - base[seed] for seed in own if seed in base])
    if name == _BASELINE or gap is None:
        return text
    return f"{text}<br>{gap.mean:+.4f}{'' if gap.deviation is None else f' ± {gap.deviation:.4f}'}"


def weight_figure(results: Results) -> list[str]:
    """Draw the score over λ1 (a), and over the balance of λ2 and λ3 (b), for every study and score."""
    panels = [
        panel(results.comparisons[study.name], study)
        for study in results.by_score()
        for panel in (sweep_panel, balance_panel)
    ]
    shares = ", ".join(f"{share:.0%} ({name})" for name, share in BALANCES.items())
    caption = (
        f"Left (a): λ1, with λ2 = λ3 = {DEFAULT_WEIGHTS[1]:g}. Right (b): λ1 = {DEFAULT_WEIGHTS[0]:g}, and λ2 is {shares} of "
        "λ2 + λ3. Our copy of the paper lacks the numbers of the sweep and of these conditions. The values here are our choice; in "
        "(b) the dominant term is nine times the other. Means over seeds; bars and band are one standard deviation. The dashed "
        "line is PiSSA without the terms."
    )
    image = _image(results, "Score over the weights", panels, curves.points_figure)
    return ["## Scores over the weights", *image, caption]


def sweep_panel(comparison: Comparison, study: Study) -> Panel:
    """Return (a): the score over λ1."""
    names = [variant.name for variant in study.variants if variant.name.startswith(_LAMBDA)]
    line = _line(comparison, names, study.score)
    return Panel(
        title=f"(a) {study.title}",
        x_label="weight of consistency, λ1 (not to scale)",
        y_label=score_label(study.score),
        series={"balora": line} if line else {},
        ticks=[name.removeprefix(_LAMBDA) for name in names],
        level=_level(comparison, study, "pissa, no terms"),
    )


def balance_panel(comparison: Comparison, study: Study) -> Panel:
    """Return (b): the score over the balance, with a line for each sum of the two weights."""
    names = [variant.name for variant in study.variants if SUM_LABEL in variant.name]
    lines = {
        f"λ2 + λ3 = {total}": _line(comparison, [balanced(name, float(total)).name for name in BALANCES], study.score)
        for total in dict.fromkeys(name.partition(SUM_LABEL)[2] for name in names)
    }
    return Panel(
        title=f"(b) {study.title}",
        x_label="balance of diversity λ2 and spectral λ3",
        y_label=score_label(study.score),
        series={name: line for name, line in lines.items() if line},
        ticks=[f"{name}\n{10 * share:.0f} : {10 - 10 * share:.0f}" for name, share in BALANCES.items()],
        level=_level(comparison, study, "pissa, no terms"),
    )


def precision_figure(pairs: Mapping[str, str]) -> Part:
    """Return the part with a figure of each model's scores, in full precision and in 4 bits.

    ``pairs`` has the name of the variant in 4 bits by the plain variant's name.
    """

    def part(results: Results) -> list[str]:
        panels = [precision_panel(results.comparisons[study.name], study, pairs) for study in results.by_score()]
        at_paper_scale = any(study.evaluation for study in results.studies)
        kinds = ("16 bits" if at_paper_scale else "32 bits", "frozen weights in 4 bits")
        several = max(1 + len(study.further) for study in results.studies)
        columns = several if several > 1 else 3  # the scores of a model side by side, or three models
        title = "Scores by model and method"
        image = _image(results, title, panels, lambda drawn, path: dot_plot.dots_figure(drawn, path, kinds, columns))
        return ["## Scores by model and precision", *image, "Means over seeds; bars are one standard deviation."]

    return part


def precision_panel(comparison: Comparison, study: Study, pairs: Mapping[str, str]) -> dot_plot.DotPanel:
    """Return one model's scores in both precisions."""
    means = _means(comparison, study.score)
    rows = {name: (means.get(name), means.get(in_4_bits)) for name, in_4_bits in pairs.items()}
    return dot_plot.DotPanel(title=study.title, x_label=score_label(study.score), rows=rows)


def rank_figure(results: Results) -> list[str]:
    """Draw the score over ranks, with full fine-tuning as a level."""
    panels = [_rank_panel(results.comparisons[s.name], s) for s in results.studies if s.name in results.comparisons]
    drawn = [panel for panel in panels if panel.series or panel.level]
    caption = "Means over seeds; bars and band are one standard deviation. The dashed line is full fine-tuning."
    return ["## Scores over ranks", *_image(results, "Score over rank", drawn, curves.rank_figure), caption]


def _rank_panel(comparison: Comparison, study: Study) -> Panel:
    lines: dict[str, list[Point]] = {}
    for group in comparison.groups:
        mean = group.scores.get(study.score)
        if mean is not None and RANK in group.axes:
            lines.setdefault(group.variant, []).append(Point(group.axes[RANK], mean.mean, mean.deviation))
    level = _level(comparison, study, "full fine-tuning")
    return Panel(title=study.title, x_label="rank", y_label=score_label(study.score), series=lines, level=level)


def score_label(score: str) -> str:
    """Return an axis title for a score."""
    return "loss on answers (nats per token)" if score == "loss" else score


def _means(comparison: Comparison, score: str) -> dict[str, MeanStd]:
    return {group.variant: group.scores[score] for group in comparison.groups if score in group.scores}


def _line(comparison: Comparison, names: Sequence[str], score: str) -> list[Point]:
    means = _means(comparison, score)
    return [Point(n, means[name].mean, means[name].deviation) for n, name in enumerate(names) if name in means]


def _level(comparison: Comparison, study: Study, label: str) -> tuple[str, Estimate] | None:
    """Return the baseline's score as a horizontal line."""
    mean = _means(comparison, study.score).get(study.baseline or "")
    return None if mean is None else (label, mean)
