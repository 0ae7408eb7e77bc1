"""Page of the laboratory: what was inherited, amplified and lost, and what the runs could decide.

For a flaw, larger is worse. Of two fine-tunings that differ in the start alone,

* *inherited* is the flaw on the flawed start minus that on the clean start;
* *amplified* is what fine-tuning added to this gap: inherited minus the gap of the two pre-trained models.

Every number is paired by seed, and item by item (facts, professions, animals).
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence

from balora.evaluation.significance.intervals import estimate, seeds_needed
from balora.evaluation.significance.items import Items
from balora.experiments.compare.statistics import Difference, correct
from balora.experiments.compare.tables import difference_text, explain_intervals, markdown_table
from balora.experiments.inheritance.measures import FLAW_SCORES, OTHER_SCORES, Measures, load_or_measure
from balora.experiments.inheritance.starts import CLEAN, FLAWED, TASK_NOISE
from balora.experiments.reproduce.experiment import Results

ANCHORED = "lora anchored {}"
"""Name of a variant with anchors."""
PAPERS_EFFECT = 0.0215
"""The paper's gain on the noisier start minus that on the cleaner one: 3.26 - 1.11 points (table 3)."""
_EFFECT_SHARE = 0.1
"""Effect on a flaw that the power estimate asks for, as a fraction of the gap of the two pre-trained models."""
Key = tuple[str, str, str, int]
"""Start, task, variant and seed of a run."""


@dataclasses.dataclass(frozen=True)
class Term:
    """Part of a contrast: the runs of a variant on a start, with a sign, perhaps relative to the pre-trained model."""

    start: str
    variant: str
    sign: float = 1.0
    is_change: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contrast:
    """A question to the runs, in one score on one task."""

    question: str
    what: str
    score: str
    task: str
    terms: tuple[Term, ...]
    effect: float
    """Size that the power estimate asks for."""


@dataclasses.dataclass(frozen=True)
class Laboratory:
    """Measures of all finished runs and of the two pre-trained models."""

    runs: Mapping[Key, Measures]
    before: Mapping[str, Measures]

    @classmethod
    def of(cls, results: Results) -> Laboratory:
        """Measure every finished run; measures are cached below the page's directory."""
        cache, prepared = results.directory / "measures", results.directory / "prepared"
        runs: dict[Key, Measures] = {}
        for study in results.studies:
            comparison = results.comparisons.get(study.name)
            if comparison is None or comparison.directory is None:
                continue
            start, _, task = study.name.partition("_")
            for row in comparison.rows:
                if row.status == "finished":
                    path = cache / study.name / f"{row.run}.json"
                    found = load_or_measure(comparison.directory / "runs" / row.run, path)
                    runs[start, task, row.variant, row.seed] = found
        before = {start: load_or_measure(prepared / start, cache / f"{start}.json") for start in (CLEAN, FLAWED)}
        return cls(runs, before)

    def values(self, contrast: Contrast) -> tuple[list[float], list[Items]]:
        """Return a contrast of each seed that has all of its runs, and the same item by item."""
        found = [
            {
                seed
                for start, task, variant, seed in self.runs
                if (start, task, variant) == (t.start, contrast.task, t.variant)
            }
            for t in contrast.terms
        ]
        values, items = [], []
        for seed in sorted(set.intersection(*found)):
            parts: dict[str, float] = {}
            for term in contrast.terms:
                own = self.runs[term.start, contrast.task, term.variant, seed].items[contrast.score]
                before = self.before[term.start].items[contrast.score] if term.is_change else {}
                for name, value in own.items():
                    parts[name] = parts.get(name, 0.0) + term.sign * (value - before.get(name, 0.0))
            values.append(statistics.fmean(parts.values()))
            items.append(Items.of_values(list(parts), {contrast.score: list(parts.values())}))
        return values, items

    def difference(self, contrast: Contrast) -> Difference | None:
        """Return a contrast with its interval, not corrected; None without runs."""
        values, items = self.values(contrast)
        if not values:
            return None
        kept = items if len(items[0].ids) > 1 else []
        return Difference.from_estimate(values, estimate(values, kept, (), contrast.score))

    def gap(self, score: str) -> float:
        """Return the flaw of the flawed pre-trained model minus that of the clean one."""
        return self.before[FLAWED].scores[score] - self.before[CLEAN].scores[score]


AMPLIFIES = "Does LoRA amplify inherited flaws?"
TERMS = "Do the printed terms reduce that?"
ANCHORS = "Do anchors?"
LARGER = "Is the gain larger on the flawed start?"


def contrasts(laboratory: Laboratory) -> list[Contrast]:
    """Return the questions of the laboratory, for every flaw and task."""
    found = []
    for task in TASK_NOISE:
        for score in FLAW_SCORES:
            effect = _EFFECT_SHARE * abs(laboratory.gap(score))
            common = {"score": score, "task": task, "effect": effect}
            both = (Term(FLAWED, "lora", is_change=True), Term(CLEAN, "lora", -1.0, is_change=True))
            found.append(Contrast(question=AMPLIFIES, what="lora, change of the gap", terms=both, **common))  # type: ignore[arg-type]
            pairs = [(TERMS, "lora+reg", "lora"), (TERMS, "balora", "pissa")]
            pairs += [(ANCHORS, ANCHORED.format(source), "lora") for source in ("generated", CLEAN, FLAWED)]
            for question, variant, base in pairs:
                terms: tuple[Term, ...] = (Term(FLAWED, variant), Term(FLAWED, base, -1.0))
                found.append(Contrast(question=question, what=f"{variant} minus {base}", terms=terms, **common))  # type: ignore[arg-type]
        for variant, base in (("balora", "pissa"), ("lora+reg", "lora")):
            terms = (
                *(Term(FLAWED, variant), Term(FLAWED, base, -1.0)),
                *(Term(CLEAN, variant, -1.0), Term(CLEAN, base)),
            )
            what = f"gain of {variant} over {base}, flawed minus clean start"
            found.append(
                Contrast(question=LARGER, what=what, score="task", task=task, terms=terms, effect=PAPERS_EFFECT)
            )
    return found


def laboratory_page(results: Results) -> list[str]:
    """Return the answers, the table of every model's flaws, and what a decision would take."""
    if not (results.directory / "prepared" / FLAWED).is_dir():
        return ["The two models have not been made yet."]
    laboratory = Laboratory.of(results)
    if not laboratory.runs:
        return ["No run is finished yet."]
    asked = [
        (contrast, gap) for contrast in contrasts(laboratory) if (gap := laboratory.difference(contrast)) is not None
    ]
    corrected = correct([gap for _, gap in asked])
    answers = [(contrast, gap) for (contrast, _), gap in zip(asked, corrected, strict=True)]
    return [
        "## Answers",
        "\n".join(_answer(question, answers) for question in (AMPLIFIES, TERMS, ANCHORS, LARGER)),
        explain_intervals(corrected, "page"),
        "## Every question, flaw by flaw",
        markdown_table(
            ["question", "what", "task", "score", "difference", "answer"],
            [
                [
                    contrast.question,
                    contrast.what,
                    contrast.task,
                    contrast.score,
                    difference_text(gap),
                    decide(contrast, gap),
                ]
                for contrast, gap in answers
            ],
        ),
        "## The models",
        *_tables(laboratory),
        "## What a decision would take",
        *_power(laboratory, [contrast for contrast, _ in answers], len(answers)),
    ]


def decide(contrast: Contrast, difference: Difference) -> str:
    """Answer a question by a corrected interval: ``yes``, ``no, the opposite`` or ``not decided``.

    A flaw is reduced by a difference below 0; it is amplified, and a gain is larger, by one above 0.
    """
    if difference.low is None or difference.high is None or difference.low <= 0 <= difference.high:
        return "not decided"
    is_wanted = difference.low > 0 if contrast.question in (AMPLIFIES, LARGER) else difference.high < 0
    return "yes" if is_wanted else "no, the opposite"


def _answer(question: str, answers: Sequence[tuple[Contrast, Difference]]) -> str:
    own = [(contrast, decide(contrast, gap)) for contrast, gap in answers if contrast.question == question]
    decided = [
        f"{answer}: {contrast.what}, {contrast.score}, {contrast.task} task"
        for contrast, answer in own
        if answer != "not decided"
    ]
    left = sum(answer == "not decided" for _, answer in own)
    told = "; ".join(decided)
    if not decided:
        return f"- {question} **Not decided**, in any of {left} comparisons."
    return f"- {question} {told}. Not decided: {left} of {len(own)}."


def _tables(laboratory: Laboratory) -> list[str]:
    """Return one table for each task: every score of every variant on both starts, and the gap."""
    scores = {**FLAW_SCORES, **OTHER_SCORES}
    parts = ["\n".join(f"- **{name}**: {text}" for name, text in scores.items())]
    for task in TASK_NOISE:
        variants = list(dict.fromkeys(variant for _, own, variant, _ in laboratory.runs if own == task))
        lines = []
        for variant in ("pre-trained", *variants):
            for start in (CLEAN, FLAWED):
                if variant == "pre-trained":
                    found = [laboratory.before[start]]
                else:
                    found = [one for key, one in laboratory.runs.items() if key[:3] == (start, task, variant)]
                if found:
                    means = (statistics.fmean(one.scores[name] for one in found) for name in scores)
                    lines.append([variant, start, str(len(found)), *(f"{mean:.3f}" for mean in means)])
        if variants:
            table = markdown_table(["model", "start", "models", *scores], lines)
            parts.append(f"### Fine-tuned on the {task} task\n\n{table}")
    return parts


def _power(laboratory: Laboratory, asked: Sequence[Contrast], comparisons: int) -> list[str]:
    """Return the number of seeds that each question would take, from the spread over the seeds of these runs."""
    lines = []
    for contrast in asked:
        values, _ = laboratory.values(contrast)
        if len(values) < 2 or contrast.effect <= 0:
            continue
        deviation = statistics.stdev(values)
        alone, all_of_them = (seeds_needed(contrast.effect, deviation, comparisons=n) for n in (1, comparisons))
        lines.append(
            [
                contrast.what,
                contrast.task,
                contrast.score,
                f"{contrast.effect:.4f}",
                f"{deviation:.4f}",
                alone,
                all_of_them,
            ]
        )
    text = (
        f"Seeds for a power of 80 %, by Student's test over seeds, if the effect is a tenth of the gap of the two pre-trained "
        f"models (for the gain: {PAPERS_EFFECT:.4f}, the paper's). With the results by item, fewer can do. The spread is "
        "estimated from few seeds itself, so the numbers are rough."
    )
    if not lines:
        return [
            "With one seed the spread over seeds is unknown, so no power can be estimated. Run at least two (`--seeds`)."
        ]
    header = ["what", "task", "score", "effect", "deviation over seeds", "seeds, alone", f"seeds, among {comparisons}"]
    return [text, markdown_table(header, lines)]
