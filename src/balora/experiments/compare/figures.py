"""Figures of a comparison as PNG, SVG and PDF: every score with its spread, and the differences to the baseline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from balora.experiments.compare.best import Best
from balora.experiments.compare.plan import configuration_label
from balora.experiments.compare.tables import Comparison, is_loss

DIRECTORY = "figures"
"""Directory of the figures in the comparison's. `balora report` draws its own, so it must not find these beside the tables."""


def write_figures(comparison: Comparison, best: Mapping[str, Best], directory: Path) -> list[Path]:
    """Write the figures into ``figures/`` of a directory.

    Args:
        comparison: Results to draw.
        best: Best configuration of each score, from `find_best`; its label is bold.
        directory: Directory of the comparison.

    Returns:
        Paths of the files: ``scores`` and, with a baseline, ``differences``, each as PNG, SVG and PDF. Empty if there is less to
        draw than two configurations with a score.
    """
    from balora.plots.score_plot import ScorePanel, ScoreRow, score_figure  # slow to import

    labels = [configuration_label(group.variant, group.axes) for group in comparison.groups]
    scores, differences = [], []
    for name in comparison.scores:
        means = [
            ScoreRow(
                label=label,
                value=mean.mean,
                low=None if mean.deviation is None else mean.mean - mean.deviation,
                high=None if mean.deviation is None else mean.mean + mean.deviation,
                bold=name in best and best[name].group == number,
            )
            for number, (label, group) in enumerate(zip(labels, comparison.groups, strict=True))
            if (mean := group.scores.get(name)) is not None
        ]
        if len(means) > 1:
            better = "less" if is_loss(name) else "more"
            scores.append(ScorePanel(title=name, x_label=f"mean ± std over seeds ({better} is better)", rows=means))
        gaps = [
            ScoreRow(label=label, value=gap.mean, low=gap.low, high=gap.high)
            for label, group in zip(labels, comparison.groups, strict=True)
            if (gap := group.differences.get(name)) is not None
        ]
        if gaps:
            axis = f"difference to {comparison.baseline}, corrected 95% interval"
            differences.append(ScorePanel(title=name, x_label=axis, rows=gaps, level=0.0))
    written: list[Path] = []
    for stem, panels in (("scores", scores), ("differences", differences)):
        if panels:
            (directory / DIRECTORY).mkdir(parents=True, exist_ok=True)
            written += score_figure(panels, labels, directory / DIRECTORY / stem)
    return written
