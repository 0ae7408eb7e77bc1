"""Table 1: every method on the paper's benchmark of generation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from balora.experiments.compare import Comparison, Variant
from balora.experiments.reproduce.columns import CAPTION, caution, columns_table, verdict
from balora.experiments.reproduce.experiment import Experiment, Study
from balora.experiments.reproduce.nlg import PERCENT, by_score, mean_table, nlg_studies
from balora.experiments.reproduce.reported import reported_markdown
from balora.experiments.reproduce.small import at_rate, bart_on_g2p, stories_on_gsm8k

BASELINE = "pissa"
METHODS = (
    *("full", "lora", "adalora", "dora", "milora", "loraplus", "lorafa", "loraga", "pissa", "corda", "cordapp"),
    "balora",
)
"""In the order of the paper's rows."""


def _variants(rates: Mapping[str, str]) -> list[Variant]:
    return [at_rate(Variant.parse(name), rates[name]) if name in rates else Variant.parse(name) for name in METHODS]


SMALL = [
    Study(
        name="gsm8k",
        title="GSM8K, a Llama of 260 k parameters",
        config=stories_on_gsm8k,
        variants=_variants({"full": "1e-3"}),
        baseline=BASELINE,
        score="loss",
        seconds=17.0,
    ),
    Study(
        name="g2p",
        title="Words to phonemes, a fifth of the answers wrong, a BART of 750 k parameters",
        config=bart_on_g2p,
        variants=_variants({"full": "1e-4"}),
        baseline=BASELINE,
        score="loss",
        seconds=14.0,
    ),
]
PAPER = nlg_studies(_variants({}), BASELINE)


def show(made: Mapping[str, Comparison], studies: Sequence[Study], folder: Path) -> list[str]:
    """The table with a column per score, what differs from PiSSA, and the paper's own table."""
    columns = list(by_score(studies))
    words = [
        f"- {study.title}, {study.score}, {verdict(made[study.name], study.score)}"
        for study in columns
        if study.name in made
    ]
    mean = mean_table(made, studies)
    return [
        columns_table(made, columns),
        CAPTION.format(baseline=BASELINE),
        *([mean] if mean else []),
        caution(made),
        "\n".join(words),
        reported_markdown("table1"),
        *([PERCENT] if studies[0].evaluation else []),
    ]


TABLE1 = Experiment(
    name="table1",
    title="Generation with every method",
    source="section 3.2.1, table 1",
    reported="The authors report BA-LoRA as best on four of the five scores and CorDA++ on the fifth, MT-Bench.",
    small=SMALL,
    paper=PAPER,
    limits=(
        "Two small models stand for LLaMA-2-7B, and their loss on held-out answers for the five scores: a language model of "
        "260 thousand parameters on 320 rows of GSM8K, which is too small for arithmetic, and an encoder-decoder of 750 "
        "thousand on 1,280 words and their phonemes. That is its own task, with a fifth of the answers swapped: it can only "
        "lose from a loss of 0.088, and what is compared is how much. All methods share a learning rate, full fine-tuning has "
        "a smaller one; a rate that suits one does not suit another."
    ),
    show=show,
)
