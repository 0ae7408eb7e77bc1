"""Table 10: the regularizers on LoRA, on DoRA and on PiSSA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from balora.experiments.compare import Comparison, Variant, summarise
from balora.experiments.compare.tables import cell_text, difference_text, markdown_table
from balora.experiments.reproduce.columns import caution, verdict
from balora.experiments.reproduce.experiment import Experiment, Study
from balora.experiments.reproduce.nlg import PERCENT, by_score, mean_table, nlg_studies
from balora.experiments.reproduce.reported import reported_markdown
from balora.experiments.reproduce.small import bart_on_g2p, stories_on_gsm8k

PAIRS = {"lora": "lora+reg", "dora": "dora+reg", "pissa": "balora"}
"""A method, and the same with the regularizers."""
VARIANTS = [Variant.parse(name) for pair in PAIRS.items() for name in pair]

SMALL = [
    Study(
        name="gsm8k",
        title="GSM8K, a Llama of 260 k parameters",
        config=stories_on_gsm8k,
        variants=VARIANTS,
        baseline="pissa",
        score="loss",
        seconds=20.0,
    ),
    Study(
        name="g2p",
        title="Words to phonemes, a fifth of the answers wrong, a BART of 750 k parameters",
        config=bart_on_g2p,
        variants=VARIANTS,
        baseline="pissa",
        score="loss",
        seconds=16.0,
    ),
]
PAPER = nlg_studies(VARIANTS, "pissa")


def show(made: Mapping[str, Comparison], studies: Sequence[Study], folder: Path) -> list[str]:
    """For every score a table with one row per method: without, with, and the difference between the two."""
    parts = []
    for study in by_score(studies):
        if study.name not in made:
            continue
        words = [f"- {verdict(made[study.name], study.score, plain, [full])}" for plain, full in PAIRS.items()]
        table = pairs_table(made[study.name], study.score)
        parts.append(f"### {study.title}, {study.score}\n\n{table}\n\n" + "\n".join(words))
    mean = mean_table(made, studies)
    caption = "Mean ± standard deviation over seeds; the difference is paired by seed, with its bootstrap interval."
    return [
        *parts,
        caption,
        caution(made),
        *([mean] if mean else []),
        reported_markdown("table10"),
        *([PERCENT] if studies[0].evaluation else []),
    ]


def pairs_table(made: Comparison, score: str) -> str:
    """One row per method: its score without and with the regularizers, and what they change."""
    lines = []
    for plain, full in PAIRS.items():
        rows = [row for row in made.rows if row.variant in (plain, full)]
        groups = {group.variant: group for group in summarise(rows, [score], plain)}
        without, having = groups.get(plain), groups.get(full)
        cells = [cell_text(group.scores.get(score), group.finished) if group else "-" for group in (without, having)]
        lines.append([plain, *cells, difference_text(having.differences.get(score) if having else None)])
    return markdown_table(["method", "without", "with the regularizers", "difference"], lines)


TABLE10 = Experiment(
    name="table10",
    title="The regularizers on LoRA, DoRA and PiSSA",
    source="appendix C.1, table 10",
    reported=(
        "The authors report that the regularizers improve each method, and that LoRA with them passes PiSSA without; of the "
        "five scores our copy has the mean alone."
    ),
    small=SMALL,
    paper=PAPER,
    limits=(
        "Two small models stand for LLaMA-2-7B, and their loss on held-out answers for the five scores: a language model of "
        "260 thousand parameters on 320 rows of GSM8K, which is too small for arithmetic, and an encoder-decoder of 750 "
        "thousand on 1,280 words and their phonemes. That is its own task, with a fifth of the answers swapped: it can only "
        "lose from a loss of 0.088, and what is compared is how much. All methods share a learning rate."
    ),
    show=show,
)
