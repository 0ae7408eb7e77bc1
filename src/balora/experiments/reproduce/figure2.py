"""Figure 2: the task loss while training, at a high and a low rank."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from balora.experiments.compare import Comparison, Variant
from balora.experiments.compare.statistics import MeanStd
from balora.experiments.compare.tables import cell_text, markdown_table
from balora.experiments.reproduce.experiment import Experiment, Study, from_recipe
from balora.experiments.reproduce.figure6 import RANK, alpha_follows
from balora.experiments.reproduce.paths import Places
from balora.experiments.reproduce.small import stories_on_gsm8k
from balora.plots.curves import curves_figure
from balora.plots.panel import Panel, Point
from balora.training.callbacks import METRICS, read_metrics

TASK = "task"
WINDOW = 5
"""Logged values that a point of a curve is the mean of; the values themselves jump with the batches."""
LAST = 0.1
"""Share of the steps, at the end, over which the final loss is taken."""
_VARIANTS = [Variant.parse(name) for name in ("lora", "pissa", "balora")]
Curve = tuple[list[float], list[float]]
"""Steps, and the task loss logged at each."""


def _config(base: Any, places: Places, every: int) -> dict[str, Any]:
    """Alpha follows the rank, and the loss is logged every few steps."""
    values = alpha_follows(base, places)
    return {**values, "training": {**(values.get("training") or {}), "logging_steps": every}}


SMALL = [
    Study(
        name="gsm8k",
        title="GSM8K, a Llama of 260 k parameters",
        config=functools.partial(_config, functools.partial(stories_on_gsm8k, subsample=640), every=2),
        variants=_VARIANTS,
        baseline="pissa",
        score="loss",
        axes={RANK: [32, 8]},
        seconds=30.0,
    )
]
PAPER = [
    Study(
        name="metamathqa",
        title="LLaMA-2-7B on MetaMathQA",
        config=functools.partial(_config, from_recipe("llama-2-7b/metamathqa"), every=10),
        variants=_VARIANTS,
        baseline="pissa",
        score="train_loss",
        axes={RANK: [128, 8]},
    )
]


def show(made: Mapping[str, Comparison], studies: Sequence[Study], folder: Path) -> list[str]:
    """The figure, and below it the loss at the end of training."""
    panels, tables = [], []
    for study in studies:
        if study.name not in made:
            continue
        curves = read_curves(made[study.name])
        ranks = study.axes[RANK]
        panels += [_panel(study, curves, rank) for rank in ranks if any(key[1] == rank for key in curves)]
        tables.append(f"### {study.title}: the task loss at the end of training\n\n{end_table(curves, ranks)}")
    written = curves_figure(panels, folder / "figure2") if panels else []
    image = [f"![Task loss over steps]({written[0].name})"] if written else []
    words = (
        f"The task loss alone, without the regularizers, on the batches trained on: at each point the mean of {WINDOW} logged "
        f"values and of all seeds, with a band of one standard deviation over seeds. Methods see the same batches in the same "
        f"order on the same seed. The table is the mean over the last {LAST:.0%} of the steps, and what is below it the "
        f"difference to PiSSA on the same seed. A low loss in training is no result by itself."
    )
    return [*image, words, *tables]


def read_curves(made: Comparison) -> dict[tuple[str, Any], dict[int, Curve]]:
    """The task loss of every finished run, from its metrics: by variant and rank, then by seed."""
    curves: dict[tuple[str, Any], dict[int, Curve]] = {}
    for row in made.rows:
        if row.status != "finished" or made.directory is None:
            continue
        lines = read_metrics(made.directory / "runs" / row.run / METRICS)
        points = [(line["step"], line[TASK]) for line in lines if isinstance(line.get(TASK), int | float)]
        found = [(float(step), float(value)) for step, value in points if math.isfinite(value)]
        if found:
            steps, values = map(list, zip(*found, strict=True))
            curves.setdefault((row.variant, row.axes.get(RANK)), {})[row.seed] = (steps, values)
    return curves


def mean_line(by_seed: Mapping[int, Curve], window: int = WINDOW) -> list[Point]:
    """The mean over seeds of smoothed curves, at the steps that all of them have.

    Example:
        >>> mean_line({1: ([1.0, 2.0], [4.0, 2.0]), 2: ([1.0, 2.0], [6.0, 4.0])}, window=1)[0]
        Point(x=1.0, mean=5.0, deviation=1.4142135623730951)
    """
    smooth = {
        seed: dict(zip(steps, running_mean(values, window), strict=True)) for seed, (steps, values) in by_seed.items()
    }
    shared = sorted(set.intersection(*(set(points) for points in smooth.values())))
    spreads = [MeanStd.of([points[step] for points in smooth.values()]) for step in shared]
    kept = [(step, spread) for step, spread in zip(shared, spreads, strict=True) if spread is not None]
    return [Point(step, s.mean, s.deviation) for step, s in kept]


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """At each place the mean of the values up to it, ``window`` of them at most.

    Example:
        >>> running_mean([1.0, 3.0, 5.0], 2)
        [1.0, 2.0, 4.0]
    """
    return [statistics.fmean(values[max(0, end - window) : end]) for end in range(1, len(values) + 1)]


def end_table(curves: Mapping[tuple[str, Any], Mapping[int, Curve]], ranks: Sequence[Any]) -> str:
    """One row per method, one column per rank: the loss at the end, and its difference to PiSSA's on the same seed."""
    ends = {key: {seed: _end(values) for seed, (_, values) in by_seed.items()} for key, by_seed in curves.items()}
    lines = []
    for name in dict.fromkeys(variant for variant, _ in ends):
        cells = [_end_cell(ends.get((name, rank), {}), ends.get(("pissa", rank), {}), name) for rank in ranks]
        lines.append([name, *cells])
    return markdown_table(["method", *(f"rank {rank}" for rank in ranks)], lines)


def _end(values: Sequence[float]) -> float:
    return statistics.fmean(values[-max(1, round(LAST * len(values))) :])


def _end_cell(own: Mapping[int, float], theirs: Mapping[int, float], name: str) -> str:
    text = cell_text(MeanStd.of(list(own.values())), len(own))
    gap = MeanStd.of([own[seed] - theirs[seed] for seed in own if seed in theirs])
    if name == "pissa" or gap is None:
        return text
    return f"{text}<br>{gap.mean:+.4f}{'' if gap.deviation is None else f' ± {gap.deviation:.4f}'}"


def _panel(study: Study, curves: Mapping[tuple[str, Any], Mapping[int, Curve]], rank: Any) -> Panel:
    lines = {name: mean_line(by_seed) for (name, found), by_seed in curves.items() if found == rank}
    return Panel(
        title=f"{study.title}, rank {rank}", x_label="step", y_label="task loss (nats per target token)", series=lines
    )


FIGURE2 = Experiment(
    name="figure2",
    title="The task loss while training",
    source="section 3.2.1, figure 2",
    reported=(
        "Our copy has neither the figure's numbers nor its two ranks; its text says that BA-LoRA converges faster and to a "
        "lower task loss than LoRA and PiSSA at both. The paper's scale here takes 128, the paper's own rank, and 8."
    ),
    small=SMALL,
    paper=PAPER,
    limits=(
        "A language model of 260 thousand parameters on 640 rows of GSM8K, at ranks 32 (the most that its layers have) and 8, "
        "in place of LLaMA-2-7B on MetaMathQA. LoRA and PiSSA share one learning rate, which decides much of how fast a loss "
        "falls."
    ),
    show=show,
)
