"""Tables and figures of a section: scores, differences, evaluations, settings and provenance."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from balora.errors import BALoraError, suggest
from balora.evaluation.significance.items import Items
from balora.experiments.compare import tables
from balora.experiments.compare.best import describe_best, explain_best, find_best
from balora.experiments.compare.evaluation import EvaluationPlan
from balora.experiments.compare.plan import configuration_label, format_value
from balora.experiments.compare.rows import Row, read_items, score_names
from balora.experiments.compare.statistics import summarise
from balora.experiments.compare.tables import Comparison
from balora.plots.inline_svg import InlineFigure, interval_figure
from balora.report.sections import Run, Section

_SHAREABLE = ("commit", "data digest", "machine", "versions")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """Table on the page."""

    title: str
    header: Sequence[str]
    lines: Sequence[Sequence[str]]
    note: str = ""
    best: frozenset[tuple[int, int]] = frozenset()
    """Line and column of the cells that are the best of their column."""


def require_baseline(directory: Path, sections: Sequence[Section], baseline: str) -> None:
    """Refuse a baseline that is in no section."""
    names = list(dict.fromkeys(row.variant for section in sections for row in section.rows))
    if baseline not in names:
        hint = f"{suggest(baseline, names)} It has runs of {', '.join(names)}."
        raise BALoraError(f"{directory} has no runs of {baseline}.{hint}")


def compare_rows(section: Section, baseline: str | None) -> Comparison:
    """Average the runs of a section over their seeds.

    Differences are taken to ``baseline`` if the section has it, else to the baseline of the comparison.
    """
    about = section.comparison or {}
    if baseline not in {row.variant for row in section.rows}:
        baseline = about.get("baseline")
    scores = about.get("scores") or score_names(section.rows)
    directories = {run.row.run: run.directory for run in section.runs}

    def items(row: Row) -> Mapping[str, Items]:
        tasks = tuple((about.get("evaluation") or {}).get("tasks", ()))
        return read_items(directories[row.run], EvaluationPlan(tasks=tasks)) if row.run in directories else {}

    groups = summarise(section.rows, scores, baseline, items)
    return Comparison(groups=groups, rows=section.rows, scores=scores, baseline=baseline, about=about, items=items)


def score_tables(section: Section, comparison: Comparison) -> list[Table]:
    """Make the tables of scores, of differences to the baseline, and of `balora evaluate` results."""
    best = find_best(comparison)
    header, lines = tables.mark_best(comparison, tables.main_table(comparison), best, "{}", "{} †")
    note = " ".join([tables.CAPTION, *([explain_best(best), *describe_best(comparison, best)] if best else [])])
    cells = frozenset((found.group, header.index(score)) for score, found in best.items())
    found = [Table(title="Scores and cost", header=header, lines=lines, note=note, best=cells)]
    if comparison.baseline is not None and any(group.differences for group in comparison.groups):
        header, lines = tables.difference_table(comparison)
        title = f"Difference to {comparison.baseline}, paired by seed"
        found.append(Table(title=title, header=header, lines=lines, note=tables.interval_note(comparison)))
    evaluated = [
        [run.name, str(run.row.seed), task, name, f"{value:.4f}"]
        for run in section.runs
        for task, result in run.evaluations.items()
        for name, value in result["scores"].items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    if evaluated:
        note = "Results of `balora evaluate`. All samples are in the directory evaluation of the run."
        header = ["run", "seed", "task", "score", "value"]
        found.append(Table(title="Evaluations", header=header, lines=evaluated, note=note))
    return found


def score_figures(comparison: Comparison) -> list[InlineFigure]:
    """Draw each score with its standard deviation, and its difference to the baseline with its interval."""
    if len(comparison.groups) < 2:
        return []
    figures = []
    for name in comparison.scores:
        means, differences = [], []
        for group in comparison.groups:
            label = configuration_label(group.variant, group.axes)
            if (score := group.scores.get(name)) is not None:
                mean, deviation = score.mean, score.deviation
                interval = (None, None) if deviation is None else (mean - deviation, mean + deviation)
                means.append((label, mean, *interval))
            if (difference := group.differences.get(name)) is not None:
                differences.append((label, difference.mean, difference.low, difference.high))
        if len(means) > 1:
            figures.append(interval_figure(f"{name}: mean ± standard deviation", means))
        if differences:
            figures.append(interval_figure(f"{name}: difference to {comparison.baseline}", differences, level=0.0))
    return figures


def settings_tables(section: Section, hidden: Sequence[str]) -> tuple[Table | None, list[tuple[str, str]]]:
    """Return a table of the settings in which the runs differ, and the settings that all runs have in common."""
    settings = [run.settings for run in section.runs]
    keys = [key for key in dict.fromkeys(key for values in settings for key in values) if key not in hidden]
    texts = {key: [_setting_text(values.get(key)) for values in settings] for key in keys}
    differing = [key for key in keys if len(set(texts[key])) > 1]
    common = [(key, texts[key][0]) for key in keys if key not in differing and texts[key][0] != "-"]
    if not differing:
        return None, common
    rows = [(run.label, *(texts[key][number] for key in differing)) for number, run in enumerate(section.runs)]
    lines = list(dict.fromkeys(rows))  # one line for all seeds of a configuration
    return Table(title="Where the runs differ", header=["runs", *differing], lines=lines), common


def summary(section: Section) -> list[tuple[str, str]]:
    """Summarise model, data, methods and weights of a section."""
    runs = section.runs
    facts = [
        ("model", list_some(str(run.config.get("model", "-")) for run in runs)),
        ("task", list_some(run.task for run in runs)),
        ("training data", list_some(_training_data(run) for run in runs)),
        ("evaluation data", list_some(str((run.config.get("data") or {}).get("eval") or "none") for run in runs)),
        ("method", list_some(_method(run) for run in runs)),
        ("regularization", list_some(_regularization(run) for run in runs)),
        ("seeds", list_some(str(row.seed) for row in section.rows)),
    ]
    return [(name, text) for name, text in facts if text]


def provenance_tables(runs: Sequence[Run]) -> tuple[Table, list[tuple[str, str]]]:
    """Return a table of each run's time, code, data, machine and versions, and the entries that all runs have in common."""
    lines = [_provenance(run) for run in runs]
    common = {key: lines[0][key] for key in _SHAREABLE if lines and len({line[key] for line in lines}) == 1}
    header = [key for key in (lines[0] if lines else {}) if key not in common]
    cells = [[line[key] for key in header] for line in lines]
    return Table(title="Runs", header=header, lines=cells), list(common.items())


def _provenance(run: Run) -> dict[str, str]:
    provenance: Mapping[str, Any] = run.row.provenance or {}
    commit, hardware = provenance.get("commit"), provenance.get("hardware") or {}
    return {
        "run": run.name,
        "status": run.row.status,
        "seed": str(run.row.seed),
        "time": str(provenance.get("time") or "-"),
        "commit": tables.commit_text(commit) if commit else "-",
        "data digest": str(provenance.get("data_digest") or "-")[:12],
        "machine": f"{hardware.get('device', '-')}, {hardware.get('cores', '-')} cores",
        "versions": tables.versions_text(provenance.get("versions") or {}),
    }


def _method(run: Run) -> str:
    method = run.config.get("method") or {}
    return f"{method.get('name', 'unknown')} (rank {method.get('rank', '-')}, alpha {method.get('alpha', '-')})"


def _regularization(run: Run) -> str:
    section = run.config.get("regularization") or {}
    active = [f"{term} {weight:g}" for term, weight in run.weights.items() if weight > 0]
    targets = [
        f"{key.removesuffix('_target')} on {section[key]}"
        for key in ("diversity_target", "spectral_target")
        if active and section.get(key, "logits") != "logits"
    ]
    return ", ".join([*active, *targets]) or "none"


def _training_data(run: Run) -> str:
    data = run.config.get("data") or {}
    return " ".join(str(data[key]) for key in ("train", "split") if data.get(key)) or "-"


def list_some(texts: Iterable[str], most: int = 8, separator: str = "; ") -> str:
    """List each different text once, and count those after the first ``most``."""
    different = list(dict.fromkeys(texts))
    return separator.join(different[:most]) + (f" and {len(different) - most} more" if len(different) > most else "")


def _setting_text(value: Any) -> str:
    return "-" if value is None or value == "" else format_value(value)
