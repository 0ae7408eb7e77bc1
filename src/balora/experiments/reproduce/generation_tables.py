"""Tables of the paper on generation, as data: every method (1), cost (5), the regularizers on other methods (10)."""

from __future__ import annotations

from collections.abc import Sequence

from balora.experiments.compare import Variant
from balora.experiments.reproduce import variants as v
from balora.experiments.reproduce.configs import few_gsm8k_questions, hub_tasks, recipe, small
from balora.experiments.reproduce.experiment import Study, declare
from balora.experiments.reproduce.parts import (
    GENERATION_SCORES,
    cost_tables,
    findings,
    mean_of_five,
    pair_tables,
    paper_numbers,
    scores_table,
)

METHODS = (
    *("full", "lora", "adalora", "dora", "milora", "loraplus", "lorafa", "loraga", "pissa", "corda", "cordapp"),
    "balora",
)
"""Methods in the order of table 1's rows."""
REGULARIZED = {"lora": "lora+reg", "dora": "dora+reg", "pissa": "balora"}
"""Regularized variant by plain method (table 10)."""
_PAIRED = v.methods(*(name for pair in REGULARIZED.items() for name in pair))
_GSM8K = ("gsm8k", "GSM8K, a Llama of 260 k parameters", small("gsm8k"))
_G2P = ("g2p", "Words to phonemes, a fifth of the answers wrong, a BART of 750 k parameters", small("g2p"))


def _generation(variants: Sequence[Variant]) -> list[Study]:
    """Return the paper's benchmark of generation: a study for each training set, on LLaMA-2-7B."""
    return [
        Study(
            data,
            data,
            recipe(f"llama-2-7b/{data}"),
            variants,
            score=scores[0],
            further=scores[1:],
            evaluation=hub_tasks(*(score.partition("/")[0] for score in scores)),
        )
        for data, scores in GENERATION_SCORES.items()
    ]


TABLE1 = declare(
    "table1",
    small=[
        Study(*_GSM8K, v.methods(*METHODS, rates={"full": "1e-3"}), seconds=17.0),
        Study(*_G2P, v.methods(*METHODS, rates={"full": "1e-4"}), seconds=14.0),
    ],
    paper=_generation(v.methods(*METHODS)),
    page=[findings(), scores_table(), mean_of_five, paper_numbers],
)

_COST_METHODS = ("full", "lora", "pissa", "balora")
TABLE5 = declare(
    "table5",
    small=[
        Study(
            *_GSM8K,
            v.methods(*_COST_METHODS, rates={"full": "1e-3"}),
            further=("gsm8k/accuracy",),
            evaluation=few_gsm8k_questions,
            seconds=30.0,
        )
    ],
    paper=[
        Study(
            "metamathqa",
            "LLaMA-2-7B on MetaMathQA",
            recipe("llama-2-7b/metamathqa"),
            v.methods(*_COST_METHODS, rates={"full": "2e-5"}),
            score="gsm8k/accuracy",
            evaluation=hub_tasks("gsm8k"),
        )
    ],
    page=[findings(), cost_tables, paper_numbers],
    measures_time=True,
)

TABLE10 = declare(
    "table10",
    small=[
        Study(*_GSM8K, _PAIRED, seconds=20.0),
        Study(*_G2P, _PAIRED, seconds=16.0),
    ],
    paper=_generation(_PAIRED),
    page=[
        findings({plain: [regularized] for plain, regularized in REGULARIZED.items()}),
        pair_tables(REGULARIZED),
        mean_of_five,
        paper_numbers,
    ],
)
