"""Table 5: what the methods cost, in memory and time, and what comes of it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from balora.experiments.compare import Comparison, Row, Variant
from balora.experiments.compare.statistics import MeanStd
from balora.experiments.compare.tables import cell_text, markdown_table
from balora.experiments.reproduce.columns import caution, verdict
from balora.experiments.reproduce.evaluations import evaluated_on, few_of_gsm8k
from balora.experiments.reproduce.experiment import Experiment, Study, from_recipe
from balora.experiments.reproduce.nlg import by_score
from balora.experiments.reproduce.reported import reported_markdown
from balora.experiments.reproduce.small import at_rate, stories_on_gsm8k

BASELINE = "pissa"


def _variants(full_rate: str) -> list[Variant]:
    return [at_rate(Variant.parse("full"), full_rate), *(Variant.parse(name) for name in ("lora", BASELINE, "balora"))]


SMALL = [
    Study(
        name="gsm8k",
        title="GSM8K, a Llama of 260 k parameters",
        config=stories_on_gsm8k,
        variants=_variants("1e-3"),
        baseline=BASELINE,
        score="loss",
        further=("gsm8k/accuracy",),
        evaluation=few_of_gsm8k,
        seconds=30.0,
    )
]
PAPER = [
    Study(
        name="metamathqa",
        title="LLaMA-2-7B on MetaMathQA",
        config=from_recipe("llama-2-7b/metamathqa"),
        variants=_variants("2e-5"),
        baseline=BASELINE,
        score="gsm8k/accuracy",
        evaluation=evaluated_on("gsm8k"),
    )
]


def show(made: Mapping[str, Comparison], studies: Sequence[Study], folder: Path) -> list[str]:
    """The table, what of the scores differs from PiSSA, and the paper's own table."""
    parts = [cost_table(made[study.name], study) for study in studies if study.name in made]
    words = [
        f"- {study.score}, {verdict(made[study.name], study.score)}"
        for study in by_score(studies)
        if study.name in made
    ]
    caption = (
        f"Mean ± standard deviation over seeds. Memory is the peak of the run's process, time that of training. Each ratio is "
        f"to {BASELINE} on the same seed. Runs were made one after the other, seed by seed, so that a slow hour touches every "
        f"method; whatever else the machine did is in the times."
    )
    return [*parts, caption, caution(made), "\n".join(words), reported_markdown("table5")]


def cost_table(made: Comparison, study: Study) -> str:
    """One row per method: memory and time, each also as a ratio to PiSSA's, and the scores."""
    scores = (study.score, *study.further)
    lines = []
    for group in made.groups:
        memory = cell_text(group.peak_memory_mib, group.finished, 0, significant=3)
        seconds = cell_text(group.seconds, group.finished, 1)
        shown = [cell_text(group.scores.get(score), group.finished) for score in scores]
        ratios = [ratio(made.rows, group.variant, what) for what in ("peak_memory_mib", "seconds")]
        lines.append([group.variant, memory, ratios[0], seconds, ratios[1], *shown])
    return markdown_table(["method", "memory (MiB)", "ratio", "time (s)", "ratio", *scores], lines)


def ratio(rows: Sequence[Row], variant: str, what: str) -> str:
    """A cost over PiSSA's on the same seed, mean ± standard deviation over seeds."""
    partners = {row.seed: getattr(row, what) for row in rows if row.variant == BASELINE and row.status == "finished"}
    own = {row.seed: getattr(row, what) for row in rows if row.variant == variant and row.status == "finished"}
    found = [own[seed] / partners[seed] for seed in own if own[seed] and partners.get(seed)]
    if not found:
        return "-"
    return cell_text(
        MeanStd(statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else None, len(found)), len(found), 2
    )


TABLE5 = Experiment(
    name="table5",
    title="Cost",
    source="section 3.2.5, table 5",
    reported=(
        "The authors report 10.75 GB and 31 minutes more for BA-LoRA than for PiSSA: 1.16 times its memory, 1.12 times its time."
    ),
    small=SMALL,
    paper=PAPER,
    limits=(
        "A language model of 260 thousand parameters on 320 rows of GSM8K, on the processor, in place of LLaMA-2-7B on two "
        "A40. Nearly all of its memory is the libraries', which every method shares, so that ratios of memory say next to "
        "nothing; it cannot do arithmetic, so that GSM8K's accuracy, on 50 questions, is near 0 for every method, and the loss "
        "says more."
    ),
    show=show,
    alone=True,
)
