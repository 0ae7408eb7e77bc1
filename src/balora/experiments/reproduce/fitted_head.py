"""Not of the paper: what a fitted head does by itself, to PiSSA and to LoRA, with seeds enough to tell.

Table 4 at three seeds leaves open whether the gain of its "ours" rows is more than chance, and whether a fitted head helps
PiSSA alone. The terms have no part in it: the one row that has them all is held against the same head without them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from balora.experiments.compare import Comparison, Variant
from balora.experiments.reproduce.columns import CAPTION, caution, columns_table, verdict
from balora.experiments.reproduce.experiment import Experiment, Study, from_recipe
from balora.experiments.reproduce.paths import Places
from balora.experiments.reproduce.small import LORA_RATE, at_rate, minilm_on
from balora.experiments.reproduce.table4 import FITTED_HEAD, ours

BASELINE = "pissa"
ALONE = dataclasses.replace(FITTED_HEAD, name="pissa+head")
WITH_TERMS = dataclasses.replace(ours("CDVS"), name="pissa+head+C+D+V+S")
LORA_ALONE = dataclasses.replace(FITTED_HEAD, name="lora+head", method="lora")
_LORA = Variant.parse("lora")
AGAINST = {BASELINE: (), _LORA.name: (LORA_ALONE.name,), ALONE.name: (WITH_TERMS.name,)}
"""What is held against what, beside everything against PiSSA."""


def _study(name: str, title: str, config: Callable[[Places], dict[str, Any]], score: str) -> Study:
    return Study(
        name=name,
        title=title,
        config=config,
        variants=[
            at_rate(_LORA, LORA_RATE),
            at_rate(LORA_ALONE, LORA_RATE),
            Variant.parse(BASELINE),
            ALONE,
            WITH_TERMS,
        ],
        baseline=BASELINE,
        score=score,
        seconds=30.0,
    )


SMALL = [
    _study("sst2", "SST-2", minilm_on, "accuracy"),
    _study(
        "sst2-imbalance",
        "SST-2, negatives 10 times rarer",
        functools.partial(minilm_on, task="sst2", subsample=2100, imbalance={"0": 0.1}),
        "f1_macro",
    ),
]
PAPER = [
    Study(
        name=task,
        title=f"DeBERTa-v3-base on {task}",
        config=from_recipe(f"deberta-v3-base/{task}"),
        variants=[_LORA, LORA_ALONE, Variant.parse(BASELINE), ALONE, WITH_TERMS],
        baseline=BASELINE,
        score=score,
    )
    for task, score in (("cola", "matthews"), ("rte", "accuracy"), ("sst2", "accuracy"))
]


def show(made: Mapping[str, Comparison], studies: Sequence[Study], folder: Path) -> list[str]:
    """The scores, and what differs from what."""
    words = [
        f"- {study.title}, {study.score}, {verdict(made[study.name], study.score, baseline, among)}"
        for study in studies
        if study.name in made
        for baseline, among in AGAINST.items()
    ]
    return [columns_table(made, studies), CAPTION.format(baseline=BASELINE), caution(made), "\n".join(words)]


EXPERIMENT = Experiment(
    name="fitted-head",
    title="A fitted head, on PiSSA and on LoRA",
    source="not of the paper; docs/method.md, departure 5",
    reported="The authors report nothing of it: their classification head is random at the start.",
    small=SMALL,
    paper=PAPER,
    limits=(
        "The rows with +head start from a fitted head, of which the last has the terms too, in our form. MiniLM-L6 (22 million "
        "parameters) on some 1,280 rows of SST-2, one epoch, as in table 4, in place of a larger encoder "
        f"trained to the end. LoRA has a learning rate of its own ({LORA_RATE}), from a pilot; every other row has PiSSA's."
    ),
    show=show,
)
