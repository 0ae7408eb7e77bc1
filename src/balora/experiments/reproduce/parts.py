"""Parts of a page as text: findings, tables of scores, costs and gains, and the paper's numbers."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from balora.experiments.compare import Comparison, Group, Row, summarise
from balora.experiments.compare.statistics import Difference, MeanStd
from balora.experiments.compare.tables import cell_text, difference_text, markdown_table, to_markdown
from balora.experiments.reproduce.experiment import Part, Results, Study
from balora.experiments.reproduce.verdicts import difference_sign, interval_caution, quoted, verdict

GENERATION_SCORES = {
    "metamathqa": ("gsm8k/accuracy", "math/accuracy"),
    "codefeedback": ("humaneval/pass@1", "mbpp/pass@1"),
    "wizardlm-evol-instruct": ("mt_bench/first_turn",),
}
"""Scores of the paper's benchmark by training set. Only the first turn of MT-Bench counts (section 3.2.1)."""
CAPTION = "Mean ± standard deviation over seeds; below it the difference to {baseline}, paired by seed, and its bootstrap interval."
CLEANER, NOISIER = "cleaner", "noisier"
"""First word of a study's name in table 3: the pre-trained model of its runs."""
_MEAN_GAIN = "mean over tasks"


def findings(contrasts: Mapping[str | None, Sequence[str]] | None = None) -> Part:
    """Return the part that says which variants differ, for every study and score.

    Args:
        contrasts: Variants to mention, by the variant to compare them with. The key None is the study's baseline; an empty list
            means all variants. Default: all variants, compared with the study's baseline.
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
    """Return the part with one row per variant and one column per study and score; ``note`` is added to the caption."""

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
    return ["## Cost", *tables, caption, interval_caution(results.comparisons.values())]


def _ratio(rows: Sequence[Row], variant: str, baseline: str | None, cost: str) -> str:
    """Return a cost relative to the baseline's on the same seed, mean ± standard deviation over seeds."""
    own, base = (
        {row.seed: getattr(row, cost) for row in rows if row.variant == name and row.status == "finished"}
        for name in (variant, baseline)
    )
    ratios = [own[seed] / base[seed] for seed in own if own[seed] and base.get(seed)]
    return cell_text(MeanStd.of(ratios), len(ratios), 2)


def caution(results: Results) -> list[str]:
    """Say how far the intervals can be trusted, on a page without a table of scores."""
    return [interval_caution(results.comparisons.values())]


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
        texts = [text for variant, over in pairs for text in _gains(results, variant, over)]
        return ["## Gains on the cleaner and the noisier model", *texts] if texts else []

    return part


def _gains(results: Results, variant: str, over: str) -> Iterator[str]:
    gains = {base_model: list(_gain_rows(results, base_model, variant, over)) for base_model in (CLEANER, NOISIER)}
    gains = {base_model: rows for base_model, rows in gains.items() if rows}
    rows = [row for found in gains.values() for row in found]
    if not rows:
        return
    names = [*dict.fromkeys(name for row in rows for name in row.scores if name != _MEAN_GAIN), _MEAN_GAIN]
    zeros = [dataclasses.replace(row, variant=over, scores=dict.fromkeys(row.scores, 0.0)) for row in rows]
    lines, verdicts = [], []
    for base_model, found in gains.items():
        differences = _group(summarise([*found, *zeros], names, over), base_model).differences
        lines.append([base_model, *(difference_text(differences.get(name)) for name in names)])
    if len(gains) == 2:
        between = _group(summarise(rows, names, CLEANER), NOISIER).differences
        lines.append(["noisier minus cleaner", *(difference_text(between.get(name)) for name in names)])
        verdicts = [f"- {name}: {_verdict(between[name])}" for name in names if name in between]
    yield (
        f"Gain of {quoted(variant)} over {quoted(over)} on either model, paired by seed, with its bootstrap interval. The paper "
        "claims a larger gain on the noisier one."
    )
    yield markdown_table(["pre-trained model", *names], lines)
    if verdicts:
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
        return f"{difference_text(difference)}; one seed has no interval, so the two gains cannot be told apart."
    words = {1: "larger", -1: "smaller", 0: "not clearly different"}[sign]
    student = difference.t_interval
    interval = f"; Student's interval [{student[0]:+.4f}, {student[1]:+.4f}]" if student else ""
    return (
        f"on the noisier model the gain is {words}, by the bootstrap interval of {difference.pairs} seeds "
        f"({difference_text(difference)}{interval})."
    )
