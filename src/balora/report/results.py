"""The numbers of a section as tables and dots, by the statistics and the tables of `balora compare`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from balora.errors import BALoraError, suggest
from balora.experiments.compare.plan import shown
from balora.experiments.compare.rows import score_names
from balora.experiments.compare.stats import Group, summarise
from balora.experiments.compare.tables import CAPTION, Comparison, difference_table, interval_note, main_table
from balora.report.plots import Panel, dot_panel
from balora.report.source import Run, Section


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A table for the page."""

    title: str
    header: Sequence[str]
    lines: Sequence[Sequence[str]]
    note: str = ""


def comparison_of(section: Section, baseline: str | None) -> Comparison:
    """The section's rows brought together.

    Args:
        section: Of a comparison, or of runs.
        baseline: What differences are taken to, where the section has it; default the comparison's own.
    """
    about = section.comparison or {}
    if baseline not in {row.variant for row in section.rows}:  # another section of the page has it
        baseline = about.get("baseline")
    scores = about.get("scores") or score_names(section.rows)
    groups = summarise(section.rows, scores, baseline)
    return Comparison(
        groups=groups, rows=section.rows, scores=scores, baseline=baseline, about=about, folder=section.folder
    )


def require_baseline(folder: Path, sections: Sequence[Section], baseline: str) -> None:
    """Refuse a baseline that no section has.

    Raises:
        BALoraError: No line has that name.
    """
    names = list(dict.fromkeys(row.variant for section in sections for row in section.rows))
    if baseline not in names:
        raise BALoraError(
            f"{folder} has no runs of {baseline}.{suggest(baseline, names)} There are {', '.join(names)}."
        )


def tables_of(section: Section, made: Comparison) -> list[Table]:
    """The scores, the differences to the baseline, and what `balora evaluate` found."""
    header, lines = main_table(made)
    tables = [Table(title="Scores and cost", header=header, lines=lines, note=CAPTION)]
    if made.baseline is not None and any(group.differences for group in made.groups):
        header, lines = difference_table(made)
        title = f"Difference to {made.baseline}, paired by seed"
        tables.append(Table(title=title, header=header, lines=lines, note=interval_note(made)))
    evaluated = [line for run in section.runs for line in _evaluation_lines(run)]
    if evaluated:
        note = "By `balora evaluate`; every sample is in the run's folder evaluation."
        header = ["run", "seed", "task", "score", "value"]
        tables.append(Table(title="Evaluations", header=header, lines=evaluated, note=note))
    return tables


def dots_of(made: Comparison) -> list[Panel]:
    """Each score's mean with its standard deviation; with a baseline, the differences with their intervals."""
    if len(made.groups) < 2:
        return []
    panels = []
    for name in made.scores:
        entries = [
            (_title(group), spread.mean, *_around(spread.mean, spread.deviation))
            for group in made.groups
            if (spread := group.scores.get(name)) is not None
        ]
        if len(entries) > 1:
            panels.append(dot_panel(f"{name}: mean ± standard deviation", entries))
        gaps = [
            (_title(group), gap.mean, gap.low, gap.high)
            for group in made.groups
            if (gap := group.differences.get(name)) is not None
        ]
        if gaps:
            panels.append(dot_panel(f"{name}: difference to {made.baseline}", gaps, level=0.0))
    return panels


def settings_of(section: Section, hidden: Sequence[str]) -> tuple[Table | None, list[tuple[str, str]]]:
    """What was run: a table of the keys in which the runs differ, and the keys they share."""
    flats = [run.flat for run in section.runs]
    keys = [key for key in dict.fromkeys(key for flat in flats for key in flat) if key not in hidden]
    texts = {key: [_shown(flat.get(key)) for flat in flats] for key in keys}
    differing = [key for key in keys if len(set(texts[key])) > 1]
    shared = [(key, texts[key][0]) for key in keys if key not in differing and texts[key] and texts[key][0] != "-"]
    if not differing or len(flats) < 2:
        return None, shared
    rows = [(run.label, *(texts[key][place] for key in differing)) for place, run in enumerate(section.runs)]
    lines = list(dict.fromkeys(rows))  # the seeds of one kind are one line
    return Table(title="Where the runs differ", header=["runs", *differing], lines=lines), shared


def _evaluation_lines(run: Run) -> list[list[str]]:
    lines = []
    for task, result in run.evaluations.items():
        numbers = {k: v for k, v in result["scores"].items() if isinstance(v, int | float) and not isinstance(v, bool)}
        lines += [[run.name, str(run.row.seed), task, name, f"{value:.4f}"] for name, value in numbers.items()]
    return lines


def _around(mean: float, deviation: float | None) -> tuple[float | None, float | None]:
    return (None, None) if deviation is None or math.isnan(deviation) else (mean - deviation, mean + deviation)


def _title(group: Group) -> str:
    return ", ".join([group.variant, *(f"{key} {shown(value)}" for key, value in group.axes.items())])


def _shown(value: Any) -> str:
    if value is None or value == "":
        return "-"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
