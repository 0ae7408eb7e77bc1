"""Parts of a page as text: findings, tables of scores, costs and gains, and the paper's numbers."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from balora.experiments.compare import Comparison, Group, Row, summarise
from balora.experiments.compare.statistics import Difference, MeanStd
from balora.experiments.compare.tables import cell_text, difference_text, markdown_table, to_markdown, verdict_text
from balora.experiments.reproduce.experiment import ComparingPart, Part, Results, Study
from balora.experiments.reproduce.verdicts import (
    difference_sign,
    differences_to,
    interval_caution,
    named_difference,
    quoted,
    verdict,
)

GENERATION_SCORES = {
    "metamathqa": ("gsm8k/accuracy", "math/accuracy"),
    "codefeedback": ("humaneval/pass@1", "mbpp/pass@1"),
    "wizardlm-evol-instruct": ("mt_bench/first_turn",),
}
"""Scores of the paper's benchmark by training set. Only the first turn of MT-Bench counts (section 3.2.1)."""
CAPTION = (
    "Mean ± standard deviation over seeds; below it the difference to {baseline}, paired by seed, and its interval."
)
CLEANER, NOISIER = "cleaner", "noisier"
"""First word of a study's name in table 3: the pre-trained model of its runs."""
_MEAN_GAIN = "mean over tasks"
_BETWEEN = "noisier minus cleaner"


def findings(contrasts: Mapping[str | None, Sequence[str]] | None = None) -> Part:
    """Return the part that says which variants differ, for every study and score.

    Args:
        contrasts: Variants to mention, by the variant to compare them with. The key None is the study's baseline; an empty list
            means all variants. Default: all variants, compared with the study's baseline.
    """

    def contrasted(results: Results) -> Iterator[tuple[Study, Comparison, str | None, Sequence[str]]]:
        for study in results.by_score():
            for baseline, among in (contrasts or {None: ()}).items():
                if baseline is None or baseline in {variant.name for variant in study.variants}:
                    yield study, results.comparisons[study.name], baseline, among

    def part(results: Results) -> list[str]:
        lines = [
            f"- {study.title}, {study.score}, {verdict(comparison, study.score, baseline, among, results.correct)}"
            for study, comparison, baseline, among in contrasted(results)
        ]
        return ["## Findings", "\n".join(lines)] if lines else []

    def compared(results: Results) -> Iterator[Difference]:
        for study, comparison, baseline, among in contrasted(results):
            yield from (gap for _, gap in differences_to(comparison, study.score, baseline, among))

    return ComparingPart(part, compared)


def scores_table(corner: str = "method", note: str = "") -> Part:
    """Return the part with one row per variant and one column per study and score; ``note`` is added to the caption."""

    def part(results: Results) -> list[str]:
        columns = results.by_score(finished=False)
        names = list(dict.fromkeys(variant.name for study in columns for variant in study.variants))
        lines = [[name, *(_cell(results, study, name) for study in columns)] for name in names]
        table = markdown_table([corner, *(f"{study.title} ({study.score})" for study in columns)], lines)
        caption = CAPTION.format(baseline=results.studies[0].baseline)
        return ["## Scores", table, f"{caption} {note}".rstrip(), *caution(results)]

    return ComparingPart(part, to_baseline)


def to_baseline(results: Results) -> Iterator[Difference]:
    """Return the differences of all variants to their study's baseline."""
    for study in results.by_score():
        yield from (gap for _, gap in differences_to(results.comparisons[study.name], study.score))


def _cell(results: Results, study: Study, variant: str) -> str:
    comparison, score = results.comparisons.get(study.name), study.score
    group = {group.variant: group for group in comparison.groups}.get(variant) if comparison else None
    if comparison is None or group is None:
        return ""
    text = cell_text(group.scores.get(score), group.finished)
    if score not in group.differences:
        return text
    return f"{text}<br>{verdict_text(results.correct(named_difference(comparison, group, score)), score)}"


def mean_of_five(results: Results) -> list[str]:
    """Return the paper's last column, for variants that have all five scores; nothing at the small scale."""
    if [study.name for study in results.studies] != list(GENERATION_SCORES):
        return []
    lines = []
    for variant in results.studies[0].variants:
        means = []
        for study in results.by_score():
            factor = 1.0 if study.score.startswith("mt_bench") else 100.0  # MT-Bench's ratings are not shares
            groups = [group for group in results.comparisons[study.name].groups if group.variant == variant.name]
            means += [group.scores[study.score].mean * factor for group in groups if study.score in group.scores]
        if len(means) == len(results.by_score(finished=False)):
            lines.append([variant.name, f"{sum(means) / len(means):.2f}"])
    table = markdown_table(["method", "mean of the five (ours; shares in percent)"], lines)
    units = "Our scores are shares from 0 to 1, and MT-Bench's ratings from 1 to 10; the paper's shares are in percent."
    return [table, units] if lines else [units]


def pair_tables(pairs: Mapping[str, str]) -> Part:
    """Return the part with a table per score: each method without and with the regularizers, and the difference.

    ``pairs`` has the name of the regularized variant by the plain variant's name.
    """

    def part(results: Results) -> list[str]:
        tables = [
            f"### {study.title}, {study.score}\n\n{_pairs_table(results, study, pairs)}" for study in results.by_score()
        ]
        caption = "Mean ± standard deviation over seeds. The difference is paired by seed, with its interval."
        return ["## Scores", *tables, caption, *caution(results)]

    def compared(results: Results) -> Iterator[Difference]:
        for study in results.by_score():
            for plain, regularized in pairs.items():
                found = differences_to(results.comparisons[study.name], study.score, plain, [regularized])
                yield from (gap for _, gap in found)

    return ComparingPart(part, compared)


def _pairs_table(results: Results, study: Study, pairs: Mapping[str, str]) -> str:
    comparison, score, lines = results.comparisons[study.name], study.score, []
    groups = {group.variant: group for group in comparison.groups}
    for plain, regularized in pairs.items():
        found = groups.get(plain), groups.get(regularized)
        cells = [cell_text(group.scores.get(score), group.finished) if group else "-" for group in found]
        gaps = [results.correct(gap) for _, gap in differences_to(comparison, score, plain, [regularized])]
        lines.append([plain, *cells, verdict_text(gaps[0] if gaps else None, score)])
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
            memory_ratio, time_ratio = (
                _ratio(comparison.rows, group.variant, study.baseline, cost) for cost in ("peak_memory_mib", "seconds")
            )
            shown = [cell_text(group.scores.get(score), group.finished) for score in scores]
            lines.append([group.variant, memory, memory_ratio, seconds, time_ratio, *shown])
        tables.append(markdown_table(["method", "memory (MiB)", "ratio", "time (s)", "ratio", *scores], lines))
    caption = (
        "Mean ± standard deviation over seeds. Memory is the peak of the run's process, time that of training. Each ratio is to "
        f"{results.studies[0].baseline} on the same seed. Runs were made one after the other, seed by seed, so that a slow hour of "
        "the machine affects every method; other programs on the machine still affect the times."
    )
    return ["## Cost", *tables, caption, *caution(results)]


def _ratio(rows: Sequence[Row], variant: str, baseline: str | None, cost: str) -> str:
    """Return a cost relative to the baseline's on the same seed, mean ± standard deviation over seeds."""
    own, base = (
        {row.seed: getattr(row, cost) for row in rows if row.variant == name and row.status == "finished"}
        for name in (variant, baseline)
    )
    ratios = [own[seed] / base[seed] for seed in own if own[seed] and base.get(seed)]
    return cell_text(MeanStd.of(ratios), len(ratios), 2)


def caution(results: Results) -> list[str]:
    """Say what the intervals of the page cover."""
    family = results.family or tuple(to_baseline(results))
    return [interval_caution(map(results.correct, family))]


def study_tables(results: Results) -> list[str]:
    """Return each study's own table."""
    finished = [study for study in results.studies if study.name in results.comparisons]
    return [f"### {study.title}\n\n{to_markdown(results.comparisons[study.name])}" for study in finished]


def paper_numbers(results: Results) -> list[str]:
    """Return the paper's table, marked as the paper's."""
    if (numbers := results.experiment.paper_numbers) is None:
        return []
    missing = "not in our copy"
    rows = numbers["rows"].items()
    lines = [[row, *(missing if cell is None else str(cell) for cell in cells)] for row, cells in rows]
    table = markdown_table(["", *numbers["columns"]], lines)
    note = [numbers["note"]] if "note" in numbers else []
    return [f"**The paper's numbers, not ours** ({numbers['source']}):", table, *note]


def study_name(base_model: str, task: str) -> str:
    """Name the study of a task on a pre-trained model."""
    return f"{base_model}_{task}"


def gain_tables(*pairs: tuple[str, str]) -> Part:
    """Return the part with the gains of each first variant over the second, on both pre-trained models (table 3)."""

    def part(results: Results) -> list[str]:
        texts = [text for variant, over in pairs for text in _gains_text(results, variant, over)]
        return ["## Gains on the cleaner and the noisier model", *texts] if texts else []

    def compared(results: Results) -> Iterator[Difference]:
        for variant, over in pairs:
            for found in _gains(results, variant, over).values():
                yield from found.values()

    return ComparingPart(part, compared)


def _gains(results: Results, variant: str, over: str) -> dict[str, dict[str, Difference]]:
    """Return the gains by line of the table, then by task: on either model, and the noisier one's minus the cleaner one's."""
    gains = {base_model: list(_gain_rows(results, base_model, variant, over)) for base_model in (CLEANER, NOISIER)}
    gains = {base_model: rows for base_model, rows in gains.items() if rows}
    rows = [row for found in gains.values() for row in found]
    names = [*dict.fromkeys(name for row in rows for name in row.scores if name != _MEAN_GAIN), _MEAN_GAIN]
    zeros = [dataclasses.replace(row, variant=over, scores=dict.fromkeys(row.scores, 0.0)) for row in rows]
    lines = {
        base_model: _group(summarise([*found, *zeros], names, over), base_model).differences
        for base_model, found in gains.items()
    }
    if len(gains) == 2:
        lines[_BETWEEN] = _group(summarise(rows, names, CLEANER), NOISIER).differences
    return {
        line: {
            name: dataclasses.replace(gap, name=f"gain of {variant} over {over}: {line}, {name}")
            for name, gap in found.items()
        }
        for line, found in lines.items()
    }


def _gains_text(results: Results, variant: str, over: str) -> Iterator[str]:
    gains = {
        line: {name: results.correct(gap) for name, gap in found.items()}
        for line, found in _gains(results, variant, over).items()
    }
    if not gains:
        return
    names = [*dict.fromkeys(name for found in gains.values() for name in found if name != _MEAN_GAIN), _MEAN_GAIN]
    yield (
        f"Gain of {quoted(variant)} over {quoted(over)} on either model, paired by seed, with its interval. The paper "
        "claims a larger gain on the noisier one."
    )
    lines = [[line, *(difference_text(found.get(name)) for name in names)] for line, found in gains.items()]
    yield markdown_table(["pre-trained model", *names], lines)
    between = gains.get(_BETWEEN, {})
    if verdicts := [f"- {name}: {_verdict(between[name])}" for name in names if name in between]:
        yield "\n".join(verdicts)


def _gain_rows(results: Results, base_model: str, variant: str, over: str) -> Iterator[Row]:
    """Yield a row per seed with the gain of each task as its scores, and the mean gain if no task is missing."""
    own = [study for study in results.studies if _base_and_task(study)[0] == base_model]
    gains: dict[int, dict[str, float]] = {}
    template: Row | None = None
    for study in own:
        rows = results.comparisons[study.name].rows if study.name in results.comparisons else []
        scores = {(r.variant, r.seed): r.scores.get(study.score) for r in rows if r.status == "finished"}
        for row in rows:
            own_score, other = scores.get((row.variant, row.seed)), scores.get((over, row.seed))
            if row.variant == variant and own_score is not None and other is not None:
                template = row
                gains.setdefault(row.seed, {})[_base_and_task(study)[1]] = own_score - other
    for seed, by_task in gains.items():
        assert template is not None
        mean = {_MEAN_GAIN: sum(by_task.values()) / len(by_task)} if len(by_task) == len(own) else {}
        yield dataclasses.replace(template, variant=base_model, seed=seed, scores={**by_task, **mean})


def _base_and_task(study: Study) -> tuple[str, str]:
    base_model, _, task = study.name.partition("_")
    return base_model, task


def _group(groups: Sequence[Group], variant: str) -> Group:
    return next(group for group in groups if group.variant == variant)


def _verdict(difference: Difference) -> str:
    """Say whether the gain is larger on the noisier model."""
    sign = difference_sign(difference)
    if sign is None:
        return f"{difference_text(difference)}; without an interval, the two gains cannot be told apart."
    words = {1: "on the noisier model the gain is larger", -1: "on the noisier model the gain is smaller"}
    return f"{words.get(sign, 'the two gains are not told apart')} ({difference_text(difference)}; {difference.pairs} seeds)."
