"""Tables of a comparison as Markdown, CSV, JSON and LaTeX, all from the same groups."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from balora.experiments.compare.plan import format_value
from balora.experiments.compare.rows import Row
from balora.experiments.compare.statistics import Difference, Group, ItemsOf, MeanStd

if TYPE_CHECKING:
    from balora.experiments.compare.best import Best

LOWER_IS_BETTER = ("loss", "perplexity", "mse", "rmse", "mae", "drift")
CAPTION = (
    "Mean ± standard deviation over seeds; se: standard error of the mean. Time: training time. Memory: peak memory of the run's "
    "process. Trainable: number of trainable parameters."
)
Verdict = Literal["better", "worse", "not told apart", "no interval"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Results of a comparison."""

    groups: Sequence[Group]
    rows: Sequence[Row]
    scores: Sequence[str]
    """Names of the reported scores, in order."""
    baseline: str | None
    about: Mapping[str, Any]
    """Config, seeds, versions, hardware, commit and data digests."""
    notes: Sequence[str] = ()
    """Warnings for the reader of the numbers."""
    directory: Path | None = None
    """Directory of the comparison, where the tables are."""
    items: ItemsOf | None = None
    """Reader of the runs' results by item; None if they were not kept."""

    @property
    def folder(self) -> Path | None:
        """Deprecated name of `directory`."""
        warnings.warn("Comparison.folder is now Comparison.directory.", DeprecationWarning, stacklevel=2)
        return self.directory

    @property
    def axes(self) -> list[str]:
        """Every varied key."""
        return list(dict.fromkeys(key for group in self.groups for key in group.axes))

    @property
    def failures(self) -> list[Row]:
        """Runs without a result."""
        return [row for row in self.rows if row.status != "finished"]


def to_markdown(comparison: Comparison, best: Mapping[str, Best] | None = None) -> str:
    """Write the scores, the differences to the baseline, the failed runs and the provenance.

    With ``best`` (from `find_best`) the best of each score is bold, and what is not told apart from it has a dagger.
    """
    table = mark_best(comparison, main_table(comparison), best or {}, "**{}**", "{} †")
    parts = [markdown_table(*table), CAPTION, *_best_notes(comparison, best or {})]
    if comparison.baseline is not None:
        parts.append(f"Difference to {comparison.baseline}, paired by seed")
        parts += [markdown_table(*difference_table(comparison)), interval_note(comparison)]
    if comparison.failures:
        failed = [f"- {row.run}: {row.reason}" for row in comparison.failures]
        parts.append("Runs without a result:\n\n" + "\n".join(failed))
    return "\n\n".join([*parts, *comparison.notes, provenance_note(comparison.about)]) + "\n"


def to_latex(comparison: Comparison, best: Mapping[str, Best] | None = None) -> str:
    """Write the same tables as `tabular` environments with the rules of booktabs; failed runs and notes are LaTeX comments."""
    header, lines = main_table(comparison)
    escaped = header, [[_escape_latex(cell) for cell in line] for line in lines]
    marked = mark_best(comparison, escaped, best or {}, r"\textbf{{{}}}", r"{}$^{{\dagger}}$")
    parts = [
        "% In the preamble: \\usepackage{booktabs}",
        _latex_table(header, marked[1]),
        *(f"% {note}" for note in (CAPTION, *_best_notes(comparison, best or {}))),
    ]
    if comparison.baseline is not None:
        parts += [
            f"% Difference to {comparison.baseline}, paired by seed.",
            _latex_table(*_escaped(difference_table(comparison))),
            f"% {interval_note(comparison)}",
        ]
    notes = [*(f"{row.run}: {row.reason}" for row in comparison.failures), *comparison.notes]
    return "\n".join([*parts, *(f"% {note}" for note in (*notes, provenance_note(comparison.about)))]) + "\n"


def to_csv(comparison: Comparison) -> str:
    """Write one line per group, with unrounded numbers."""
    out = io.StringIO()
    names, costs = ["variant", *comparison.axes, "finished", "planned"], ("seconds", "peak_memory_mib", "trainable")
    names += [f"{name}_{part}" for name in (*comparison.scores, *costs) for part in ("mean", "std", "se", "n")]
    if comparison.baseline is not None:
        parts = (
            *("difference", "difference_se", "difference_low", "difference_high", "difference_p", "verdict", "basis"),
            *("comparisons", "pairs"),
        )
        names += [f"{name}_{part}" for name in comparison.scores for part in parts]
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    for group in comparison.groups:
        line: dict[str, Any] = {"variant": group.variant, "finished": group.finished, "planned": group.planned}
        line |= {key: format_value(value) for key, value in group.axes.items()}
        for name, mean in {**group.scores, **{cost: getattr(group, cost) for cost in costs}}.items():
            if mean is not None:
                line |= {f"{name}_mean": mean.mean, f"{name}_std": mean.deviation, f"{name}_n": mean.count}
                line[f"{name}_se"] = mean.error
        for name, difference in group.differences.items():
            line |= {f"{name}_difference": difference.mean, f"{name}_pairs": difference.pairs}
            line |= {f"{name}_difference_low": difference.low, f"{name}_difference_high": difference.high}
            line |= {f"{name}_difference_se": difference.error, f"{name}_difference_p": difference.p}
            line |= {f"{name}_verdict": verdict_of(difference, name), f"{name}_basis": difference.basis}
            line[f"{name}_comparisons"] = difference.comparisons
        writer.writerow(line)
    return out.getvalue()


def to_json(comparison: Comparison) -> str:
    """Write the groups and every row."""
    content = {
        "about": comparison.about,
        "notes": list(comparison.notes),
        "baseline": comparison.baseline,
        "scores": list(comparison.scores),
        "groups": [dataclasses.asdict(group) for group in comparison.groups],
        "rows": [row.to_dict() for row in comparison.rows],
    }
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def main_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return header and lines of the table of scores and costs."""
    header = ["method", *comparison.axes, "runs", *comparison.scores, "time (s)", "memory (MiB)", "trainable"]
    lines = []
    for group in comparison.groups:
        runs = f"{group.finished}/{group.planned}"
        scores = [cell_text(group.scores.get(name), group.finished) for name in comparison.scores]
        costs = [cell_text(cost, group.finished, 0, significant=3) for cost in (group.seconds, group.peak_memory_mib)]
        trainable = "-" if group.trainable is None else f"{group.trainable.mean:,.0f}"
        lines.append([*_group_cells(comparison, group), runs, *scores, *costs, trainable])
    return header, lines


def mark_best(
    comparison: Comparison, table: tuple[list[str], list[list[str]]], best: Mapping[str, Best], bold: str, unclear: str
) -> tuple[list[str], list[list[str]]]:
    """Mark the cells of the best, and of what is not told apart from it, in a table of `main_table`.

    ``bold`` and ``unclear`` are patterns for the cells, such as ``**{}**``.
    """
    header, lines = table[0], [list(line) for line in table[1]]
    first = 2 + len(comparison.axes)  # after method, axes and runs
    for column, score in enumerate(comparison.scores, first):
        if score in best:
            found = best[score]
            for number in (found.group, *found.open):
                pattern = bold if number == found.group else unclear
                lines[number][column] = pattern.format(lines[number][column])
    return header, lines


def _best_notes(comparison: Comparison, best: Mapping[str, Best]) -> list[str]:
    from balora.experiments.compare.best import describe_best, explain_best

    return [explain_best(best), " ".join(describe_best(comparison, best))] if best else []


def difference_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return header and lines of the table of differences to the baseline, with their intervals."""
    lines = []
    for group in comparison.groups:
        if group.variant != comparison.baseline:
            texts = [verdict_text(group.differences.get(name), name) for name in comparison.scores]
            lines.append([*_group_cells(comparison, group), *texts])
    return ["method", *comparison.axes, *comparison.scores], lines


def interval_note(comparison: Comparison) -> str:
    """Explain the intervals in brackets, and what a statement about a difference covers."""
    return explain_intervals([gap for group in comparison.groups for gap in group.differences.values()], "table")


def explain_intervals(differences: Sequence[Difference], where: str) -> str:
    """Explain the intervals of some differences; ``where`` is the table or page with all of them."""
    tested = [difference for difference in differences if difference.p is not None]
    if not tested:
        return (
            "No difference has an interval, so none is called better or worse: one seed, or equal differences on every seed, "
            "say nothing about other seeds. Take more seeds."
        )
    fewest, most = (choose(difference.pairs for difference in tested) for choose in (min, max))
    seeds = str(fewest) if fewest == most else f"{fewest} to {most}"
    count = max(difference.comparisons for difference in tested)
    text = (
        f"In brackets: Student's 95% interval of the mean difference over {seeds} seeds, corrected for the {count} "
        f"comparison{'' if count == 1 else 's'} of this {where} by Holm's method. Better or worse is said only if it excludes 0. "
    )
    by_item = sum(difference.basis == "seeds and items" for difference in tested)
    if by_item == len(tested):
        return text + "It covers other seeds and other items like those of this test set."
    covers = "It covers other seeds on this test set, not other items"
    if by_item:
        covers += f"; {by_item} of {len(tested)} differences have results by item and cover other items as well"
    return f"{text}{covers}."


def verdict_of(difference: Difference, score: str) -> Verdict:
    """Say whether a difference is told apart from 0: its corrected interval excludes 0.

    Example:
        >>> verdict_of(Difference(-0.1, -0.2, -0.05, 3), "loss")
        'better'
    """
    if difference.low is None or difference.high is None:
        return "no interval"
    if difference.low <= 0 <= difference.high:
        return "not told apart"
    return "better" if (difference.low > 0) is not is_loss(score) else "worse"


def is_loss(score: str) -> bool:
    """Return True if a smaller score is better.

    Example:
        >>> is_loss("anchor_drift"), is_loss("mt_bench/accuracy")
        (True, False)
    """
    return score.rsplit("/", 1)[-1].rsplit("_", 1)[-1] in LOWER_IS_BETTER


def verdict_text(difference: Difference | None, score: str) -> str:
    """Format a difference as ``+0.0120 [+0.0050, +0.0190] better``; without the word if it is not told apart."""
    if difference is None:
        return "-"
    word = verdict_of(difference, score)
    return difference_text(difference) + (f" {word}" if word in ("better", "worse") else "")


def cell_text(mean: MeanStd | None, runs: int, digits: int = 4, significant: int | None = None) -> str:
    """Format a mean as ``0.8230 ± 0.0041``; ``(2 of 3)`` follows if only some of the ``runs`` have the number.

    If the mean has fewer than ``significant`` digits before the point, one digit after the point is shown instead of ``digits``.
    """
    if mean is None:
        return "-"
    if significant is not None and mean.mean < 10 ** (significant - 1):
        digits = 1
    deviation = "" if mean.deviation is None else f" ± {mean.deviation:,.{digits}f}"
    missing = "" if mean.count == runs else f" ({mean.count} of {runs})"
    error = "" if mean.error is None else f" (se {mean.error:,.{digits}f})"
    return f"{mean.mean:,.{digits}f}{deviation}{error}{missing}"


def difference_text(difference: Difference | None) -> str:
    """Format a difference as ``+0.0120 [+0.0050, +0.0190]``."""
    if difference is None:
        return "-"
    interval = "" if difference.low is None else f" [{difference.low:+.4f}, {difference.high:+.4f}]"
    return f"{difference.mean:+.4f}{interval}"


def markdown_table(header: list[str], lines: list[list[str]]) -> str:
    """Format a Markdown table."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def provenance_note(about: Mapping[str, Any]) -> str:
    """Summarise time, code, machine, seeds and data of a comparison in one paragraph."""
    provenance = about["provenance"]
    commit, hardware = provenance.get("commit"), provenance["hardware"]
    code = f"commit {commit_text(commit)}, " if commit else ""
    digests = ", ".join(digest[:12] for digest in about["data_digests"]) or "none"
    at_a_time = "as many runs as fit" if about["jobs"] is None else f"{about['jobs']} run(s)"
    return (
        f"Made {provenance['time']} by balora compare: {code}{versions_text(provenance['versions'])}; {hardware['device']}, "
        f"{hardware['cores']} cores, {at_a_time} at a time, engine {about['engine']}; "
        f"seeds {', '.join(map(str, about['seeds']))}; data digest {digests}."
    )


def commit_text(commit: Mapping[str, Any]) -> str:
    """Format a commit of the provenance as ``0123456789ab with changes``."""
    return f"{commit['id'][:12]}{' with changes' if commit.get('dirty') else ''}"


def versions_text(versions: Mapping[str, str | None]) -> str:
    """Format the installed versions as ``torch 2.6, peft 0.21``."""
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version)


def _group_cells(comparison: Comparison, group: Group) -> list[str]:
    axes = [format_value(group.axes[key]) if key in group.axes else "-" for key in comparison.axes]
    return [group.variant, *axes]


def _latex_table(header: list[str], lines: list[list[str]]) -> str:
    """Write a table whose cells are LaTeX already; only the header is escaped. Methods are left, numbers are right."""
    head, *body = [" & ".join(line) + r" \\" for line in ([_escape_latex(name) for name in header], *lines)]
    parts = [rf"\begin{{tabular}}{{@{{}}l{'r' * (len(header) - 1)}@{{}}}}", r"\toprule", head, r"\midrule"]
    return "\n".join([*parts, *body, r"\bottomrule", r"\end{tabular}"])


def _escaped(table: tuple[list[str], list[list[str]]]) -> tuple[list[str], list[list[str]]]:
    return table[0], [[_escape_latex(cell) for cell in line] for line in table[1]]


def _escape_latex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
    return re.sub(r"[\\~^±&%$#_{}]", lambda match: special.get(match[0], "\\" + match[0]), text)
