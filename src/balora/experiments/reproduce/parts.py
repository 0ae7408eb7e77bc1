"""Parts of a page: findings, tables of scores, and the paper's own numbers, each a function of an experiment's results."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from balora.experiments.compare import Comparison, Group, Row, summarise
from balora.experiments.compare.statistics import MeanStd
from balora.experiments.compare.tables import cell_text, difference_text, markdown_table, to_markdown
from balora.experiments.reproduce.experiment import Part, Results
from balora.experiments.reproduce.verdicts import interval_caution, verdict

GENERATION_SCORES = {
    "metamathqa": ("gsm8k/accuracy", "math/accuracy"),
    "codefeedback": ("humaneval/pass@1", "mbpp/pass@1"),
    "wizardlm-evol-instruct": ("mt_bench/first_turn",),
}
"""Scores of the paper's benchmark by training set; of MT-Bench the first turn alone (section 3.2.1)."""
CAPTION = "Mean ± standard deviation over seeds; below it the difference to {baseline}, paired by seed, and its bootstrap interval."


def findings(contrasts: Mapping[str | None, Sequence[str]] | None = None) -> Part:
    """Return the part that says, for every study and score, which variants differ.

    Args:
        contrasts: Variants to mention by the variant to compare them with, where None is the study's baseline and no names are
            all variants. By default all variants are compared with the study's baseline.
    """

    def part(results: Results) -> list[str]:
        lines = [
            f"- {study.title}, {study.score}, {verdict(results.comparisons[study.name], study.score, baseline, among)}"
            for study in results.by_score()
            for baseline, among in (contrasts or {None: ()}).items()
            if baseline is None or baseline in {variant.name for variant in study.variants}
        ]
        return ["## Findings", "\n".join(lines)] if lines else []

    return part


def scores_table(corner: str = "method", note: str = "") -> Part:
    """Return the part with one row per variant and one column per study and score.

    Args:
        corner: Title of the first column.
        note: Text to append to the caption.
    """

    def part(results: Results) -> list[str]:
        columns = results.by_score(finished=False)
        names = list(dict.fromkeys(variant.name for study in columns for variant in study.variants))
        groups = {key: {g.variant: g for g in comparison.groups} for key, comparison in results.comparisons.items()}
        lines = [[name, *(_cell(groups.get(s.name, {}).get(name), s.score) for s in columns)] for name in names]
        table = markdown_table([corner, *(f"{study.title} ({study.score})" for study in columns)], lines)
        caption = CAPTION.format(baseline=results.studies[0].baseline)
        return ["## Scores", table, f"{caption} {note}".rstrip(), interval_caution(results.comparisons.values())]

    return part


def _cell(group: Group | None, score: str) -> str:
    if group is None:
        return ""
    text = cell_text(group.scores.get(score), group.finished)
    return f"{text}<br>{difference_text(group.differences[score])}" if score in group.differences else text


def mean_of_five(results: Results) -> list[str]:
    """Return the paper's last column, for variants that have all five scores; nothing at the small scale."""
    if [study.name for study in results.studies] != list(GENERATION_SCORES):
        return []
    lines = []
    for variant in results.studies[0].variants:
        means = [_mean(results.comparisons[s.name], variant.name, s.score) for s in results.by_score()]
        known = [mean for mean in means if mean is not None]
        if len(known) == len(results.by_score(finished=False)):
            lines.append([variant.name, f"{sum(known) / len(known):.2f}"])
    table = markdown_table(["method", "mean of the five (ours; shares in percent)"], lines)
    units = "Our scores are shares from 0 to 1, and MT-Bench's ratings from 1 to 10; the paper's shares are in percent."
    return [table, units] if lines else [units]


def _mean(comparison: Comparison, variant: str, score: str) -> float | None:
    """Return a share in percent, or a rating unchanged."""
    for group in comparison.groups:
        if group.variant == variant and score in group.scores:
            return group.scores[score].mean * (1.0 if score.startswith("mt_bench") else 100.0)
    return None


def pair_tables(pairs: Mapping[str, str]) -> Part:
    """Return the part with a table for every score: each method without and with the regularizers, and the difference.

    Args:
        pairs: Name of the regularized variant by the plain variant's name.
    """

    def part(results: Results) -> list[str]:
        tables = [
            f"### {study.title}, {study.score}\n\n{_pairs_table(results.comparisons[study.name], study.score, pairs)}"
            for study in results.by_score()
        ]
        caption = "Mean ± standard deviation over seeds. The difference is paired by seed, with its bootstrap interval."
        return ["## Scores", *tables, caption, interval_caution(results.comparisons.values())]

    return part


def _pairs_table(comparison: Comparison, score: str, pairs: Mapping[str, str]) -> str:
    lines = []
    for plain, regularized in pairs.items():
        rows = [row for row in comparison.rows if row.variant in (plain, regularized)]
        groups = {group.variant: group for group in summarise(rows, [score], plain)}
        found = groups.get(plain), groups.get(regularized)
        cells = [cell_text(group.scores.get(score), group.finished) if group else "-" for group in found]
        lines.append([plain, *cells, difference_text(found[1].differences.get(score) if found[1] else None)])
    return markdown_table(["method", "without", "with the regularizers", "difference"], lines)


def cost_tables(results: Results) -> list[str]:
    """Return a table per study: memory and time of each method, their ratios to the baseline's, and the scores."""
    tables = []
    for study in results.studies:
        if (comparison := results.comparisons.get(study.name)) is None:
            continue
        scores, lines = (study.score, *study.further), []
        for group in comparison.groups:
            memory = cell_text(group.peak_memory_mib, group.finished, 0, significant=3)
            seconds = cell_text(group.seconds, group.finished, 1)
            ratios = [
                _ratio(comparison.rows, group.variant, study.baseline, cost) for cost in ("peak_memory_mib", "seconds")
            ]
            shown = [cell_text(group.scores.get(score), group.finished) for score in scores]
            lines.append([group.variant, memory, ratios[0], seconds, ratios[1], *shown])
        tables.append(markdown_table(["method", "memory (MiB)", "ratio", "time (s)", "ratio", *scores], lines))
    caption = (
        "Mean ± standard deviation over seeds. Memory is the peak of the run's process, time that of training. Each ratio is to "
        f"{results.studies[0].baseline} on the same seed. Runs were made one after the other, seed by seed, so that a slow hour of "
        "the machine affects every method; other programs on the machine still affect the times."
    )
    return ["## Cost", *tables, caption, interval_caution(results.comparisons.values())]


def _ratio(rows: Sequence[Row], variant: str, baseline: str | None, cost: str) -> str:
    """Return a cost relative to the baseline's on the same seed, mean ± standard deviation over seeds."""
    own, base = (
        {row.seed: getattr(row, cost) for row in rows if row.variant == name and row.status == "finished"}
        for name in (variant, baseline)
    )
    ratios = [own[seed] / base[seed] for seed in own if own[seed] and base.get(seed)]
    if not ratios:
        return "-"
    deviation = statistics.stdev(ratios) if len(ratios) > 1 else None
    return cell_text(MeanStd(statistics.fmean(ratios), deviation, len(ratios)), len(ratios), 2)


def caution(results: Results) -> list[str]:
    """Return how far the intervals can be trusted, for pages without a table of scores."""
    return [interval_caution(results.comparisons.values())]


def study_tables(results: Results) -> list[str]:
    """Return each study's own table."""
    finished = [study for study in results.studies if study.name in results.comparisons]
    return [f"### {study.title}\n\n{to_markdown(results.comparisons[study.name])}" for study in finished]


def paper_numbers(results: Results) -> list[str]:
    """Return the paper's table, under a line that says that these numbers are not ours."""
    if (numbers := results.experiment.paper_numbers) is None:
        return []
    lines = [
        [row, *("not in our copy" if cell is None else str(cell) for cell in cells)]
        for row, cells in numbers["rows"].items()
    ]
    table = markdown_table(["", *numbers["columns"]], lines)
    note = [numbers["note"]] if "note" in numbers else []
    return [f"**The paper's numbers, not ours** ({numbers['source']}):", table, *note]
