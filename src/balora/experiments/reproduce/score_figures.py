"""Figures of scores: over the regularizers' weights (figure 4), over models and precisions (5), over ranks (6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from balora.experiments.compare import Comparison
from balora.experiments.compare.statistics import MeanStd
from balora.experiments.reproduce.experiment import Part, Results, Study
from balora.experiments.reproduce.variants import BALANCES, DEFAULT_WEIGHTS, SUM_LABEL, balanced
from balora.plots import curves, dot_plot
from balora.plots.curves import Estimate, Panel, Point

RANK = "method.rank"
_LAMBDA = "λ1 = "


def weight_figure(results: Results) -> list[str]:
    """Draw the score over λ1 (a), and over the balance of λ2 and λ3 (b), for every study and score."""
    panels = [
        panel(results.comparisons[study.name], study)
        for study in results.by_score()
        for panel in (sweep_panel, balance_panel)
    ]
    written = curves.points_figure(panels, results.directory / results.experiment.name) if panels else []
    shares = ", ".join(f"{share:.0%} ({name})" for name, share in BALANCES.items())
    caption = (
        f"Left (a): λ1, with λ2 = λ3 = {DEFAULT_WEIGHTS[1]:g}. Right (b): λ1 = {DEFAULT_WEIGHTS[0]:g}, and λ2 is {shares} of "
        "λ2 + λ3. Our copy of the paper lacks the numbers of the sweep and of these conditions. The values here are our choice; in "
        "(b) the dominant term is nine times the other. Means over seeds; bars and band are one standard deviation. The dashed "
        "line is PiSSA without the terms."
    )
    return ["## Scores over the weights", *_image("Score over the weights", written), caption]


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
    sums = dict.fromkeys(
        variant.name.partition(SUM_LABEL)[2] for variant in study.variants if SUM_LABEL in variant.name
    )
    lines = {
        f"λ2 + λ3 = {total}": _line(comparison, [balanced(name, float(total)).name for name in BALANCES], study.score)
        for total in sums
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

    Args:
        pairs: Name of the variant in 4 bits by the plain variant's name.
    """

    def part(results: Results) -> list[str]:
        drawn = results.by_score()
        panels = [precision_panel(results.comparisons[study.name], study, pairs) for study in drawn]
        at_paper_scale = any(study.evaluation for study in results.studies)
        kinds = ("16 bits" if at_paper_scale else "32 bits", "frozen weights in 4 bits")
        several = max(1 + len(study.further) for study in results.studies)
        columns = several if several > 1 else 3  # the scores of a model side by side, or three models
        written = (
            dot_plot.dots_figure(panels, results.directory / results.experiment.name, kinds, columns) if panels else []
        )
        caption = "Means over seeds; bars are one standard deviation."
        return ["## Scores by model and precision", *_image("Scores by model and method", written), caption]

    return part


def precision_panel(comparison: Comparison, study: Study, pairs: Mapping[str, str]) -> dot_plot.DotPanel:
    """Return one model's scores in both precisions."""
    spreads = _spreads(comparison, study.score)
    rows = {name: (spreads.get(name), spreads.get(in_4_bits)) for name, in_4_bits in pairs.items()}
    return dot_plot.DotPanel(title=study.title, x_label=score_label(study.score), rows=rows)


def rank_figure(results: Results) -> list[str]:
    """Draw the score over ranks, with full fine-tuning as a level."""
    panels = [_rank_panel(results.comparisons[s.name], s) for s in results.studies if s.name in results.comparisons]
    drawn = [panel for panel in panels if panel.series or panel.level]
    written = curves.rank_figure(drawn, results.directory / results.experiment.name) if drawn else []
    caption = "Means over seeds; bars and band are one standard deviation. The dashed line is full fine-tuning."
    return ["## Scores over ranks", *_image("Score over rank", written), caption]


def _rank_panel(comparison: Comparison, study: Study) -> Panel:
    lines: dict[str, list[Point]] = {}
    for group in comparison.groups:
        spread = group.scores.get(study.score)
        if spread is not None and RANK in group.axes:
            point = Point(group.axes[RANK], spread.mean, spread.deviation)
            lines.setdefault(group.variant, []).append(point)
    level = _level(comparison, study, "full fine-tuning")
    return Panel(title=study.title, x_label="rank", y_label=score_label(study.score), series=lines, level=level)


def score_label(score: str) -> str:
    """Return an axis title for a score."""
    return "loss on answers (nats per token)" if score == "loss" else score


def _spreads(comparison: Comparison, score: str) -> dict[str, MeanStd]:
    return {group.variant: group.scores[score] for group in comparison.groups if score in group.scores}


def _line(comparison: Comparison, names: Sequence[str], score: str) -> list[Point]:
    spreads = _spreads(comparison, score)
    known = [(index, spreads[name]) for index, name in enumerate(names) if name in spreads]
    return [Point(index, mean.mean, mean.deviation) for index, mean in known]


def _level(comparison: Comparison, study: Study, label: str) -> tuple[str, Estimate] | None:
    """Return the baseline's score as a horizontal line."""
    spread = _spreads(comparison, study.score).get(study.baseline or "")
    return None if spread is None else (label, spread)


def _image(title: str, written: Sequence[Path]) -> list[str]:
    return [f"![{title}]({written[0].name})"] if written else []
