"""Figures of the paper as data."""

import functools

from balora.experiments.compare import Variant
from balora.experiments.reproduce import variants as v
from balora.experiments.reproduce.configs import LLAMA_METAMATHQA, hub_tasks, recipe, small
from balora.experiments.reproduce.experiment import Study, declare
from balora.experiments.reproduce.feature_maps import BALANCED, IMBALANCED, feature_maps
from balora.experiments.reproduce.figure_parts import RANK, loss_curves, precision_figure, rank_figure, weight_figure
from balora.experiments.reproduce.parts import caution, findings, paper_numbers, scores_table, study_tables
from balora.experiments.reproduce.preparation import QUICKSTART_ROWS, SIMILARITY

_SMALL_GSM8K = "GSM8K, a Llama of 260 k parameters"
_SMALL_G2P = "Phonemes, a BART of 750 k parameters"
_ALPHA_IS_RANK = {"rank": None, "alpha": None}
"""Change to the section ``method`` that makes alpha equal to the rank, as in the paper's own setting (128 and 128)."""

FIGURE2 = declare(
    "figure2",
    small=[
        Study(
            "gsm8k",
            _SMALL_GSM8K,
            small("gsm8k", data={"subsample": 640}, method=_ALPHA_IS_RANK, training={"logging_steps": 2}),
            v.LORA_PISSA_BALORA,
            axes={RANK: [32, 8]},
            seconds=30.0,
        )
    ],
    paper=[
        Study(
            "metamathqa",
            LLAMA_METAMATHQA,
            recipe("llama-2-7b/metamathqa", method=_ALPHA_IS_RANK, training={"logging_steps": 10}),
            v.LORA_PISSA_BALORA,
            score="train_loss",
            axes={RANK: [128, 8]},
        )
    ],
    page=[loss_curves],
)

_IMBALANCE = {"imbalance": {"neutral": 0.1, "contradiction": 0.01}}
# Appendix B gives three epochs for the imbalanced set, and nothing for the balanced one.
_MNLI = functools.partial(recipe, "roberta-base/mnli", training={"num_train_epochs": 3})
FIGURE3 = declare(
    "figure3",
    small=[
        Study(name, title, small("similarity", data=data), v.LORA_AT_RATE_AND_OURS, score="accuracy", seconds=40.0)
        for name, title, data in (
            # Both have 1,110 rows: 370 of each class, or about 1,000, 100 and 10.
            (BALANCED, "balanced", {"subsample": 1110}),
            (IMBALANCED, "100:10:1", {"subsample": 3000, "imbalance": {"middle": 0.1, "low": 0.01}}),
        )
    ],
    paper=[
        Study(name, title, _MNLI(data=data), v.LORA_PISSA_BALORA, score="accuracy")
        for name, title, data in ((BALANCED, "balanced", {}), (IMBALANCED, "100:10:1", _IMBALANCE))
    ],
    page=[feature_maps, paper_numbers],
    preparation=SIMILARITY,
)


def _weights(consistencies: tuple[float, ...], totals: tuple[float, ...]) -> list[Variant]:
    """Return PiSSA without terms, the points of (a) and those of (b). The paper's own weights are in both and listed once."""
    points = [v.balanced(balance, total) for total in totals for balance in v.BALANCES]
    swept = [v.swept(value) for value in consistencies]
    return [*v.methods("pissa"), *swept, *(point for point in points if point not in swept)]


_SMALL_WEIGHTS = _weights((0.0, 0.025, 0.1, 0.5, 2.5), (0.01, 1.0))
FIGURE4 = declare(
    "figure4",
    small=[
        Study("gsm8k", _SMALL_GSM8K, small("gsm8k"), _SMALL_WEIGHTS, seconds=20.0),
        Study("g2p", _SMALL_G2P, small("g2p"), _SMALL_WEIGHTS, seconds=16.0),
    ],
    paper=[
        Study(
            "metamathqa",
            LLAMA_METAMATHQA,
            recipe("llama-2-7b/metamathqa"),
            _weights((0.0, 0.005, 0.0125, 0.025, 0.05, 0.1), (0.01,)),
            score="gsm8k/accuracy",
            further=("math/accuracy",),
            evaluation=hub_tasks("gsm8k", "math"),
        )
    ],
    page=[findings(), weight_figure, caution, study_tables],
)

IN_4_BITS = {"lora": "qlora", "pissa": "qpissa", "balora": "qbalora"}
"""Variant with the frozen weights in 4 bits by plain method."""
_PRECISIONS = v.methods(*(name for pair in IN_4_BITS.items() for name in pair))
MODELS = {
    "llama-2-7b": "LLaMA-2-7B",
    "llama-2-13b": "LLaMA-2-13B",
    "llama-3-8b": "LLaMA-3-8B",
    "llama-3-70b": "LLaMA-3-70B",
    "mistral-7b-v0.1": "Mistral-7B",
    "mixtral-8x7b-v0.1": "Mixtral-8x7B",
    "gemma-7b": "Gemma-7B",
    "qwen1.5-7b": "Qwen-1.5-7B",
    "yi-1.5-34b": "Yi-1.5-34B",
    "deepseek-moe-16b": "DeepSeek-MoE-16B",
}
"""Titles of the paper's ten models by recipe."""
FIGURE5 = declare(
    "figure5",
    small=[
        Study("stories260k", "stories260K, GSM8K", small("gsm8k"), _PRECISIONS, seconds=20.0),
        Study("bart-g2p", "bart-g2p, phonemes", small("g2p"), _PRECISIONS, seconds=16.0),
        Study("quickstart", "quickstart's Llama, its task", small("quickstart"), _PRECISIONS, seconds=20.0),
    ],
    paper=[
        Study(
            model,
            title,
            recipe(f"{model}/metamathqa-codefeedback"),
            _PRECISIONS,
            score="gsm8k/accuracy",
            further=("humaneval/pass@1",),
            evaluation=hub_tasks("gsm8k", "humaneval"),
        )
        for model, title in MODELS.items()
    ],
    page=[
        findings({"pissa": list(IN_4_BITS), "qpissa": list(IN_4_BITS.values())}),
        precision_figure(IN_4_BITS),
        scores_table(),
    ],
    preparation=QUICKSTART_ROWS,
)


def _and_full(rate: str) -> list[Variant]:
    """Return the three methods and full fine-tuning at its own rate: it changes all weights and needs a lower one."""
    return [*v.LORA_PISSA_BALORA, *v.methods("full", rates={"full": rate})]


FIGURE6 = declare(
    "figure6",
    small=[
        Study(
            name,
            title,
            small(name, method=_ALPHA_IS_RANK),
            _and_full(rate),
            baseline="full",
            axes={RANK: ranks},
            seconds=seconds,
        )
        for name, title, rate, ranks, seconds in (
            # The key and value layers of the Llama are 64 × 32, so no rank is above 32.
            ("gsm8k", "GSM8K answers, a Llama of 260 k parameters", "1e-3", [1, 2, 8, 32], 25.0),
            ("g2p", _SMALL_G2P, "1e-4", [1, 8, 64], 20.0),
        )
    ],
    paper=[
        Study(
            model,
            f"{model} on MetaMathQA",
            recipe(f"{model}/metamathqa", method=_ALPHA_IS_RANK),
            _and_full("2e-5"),
            baseline="full",
            axes={RANK: [1, 2, 4, 8, 16, 32, 64, 128]},
        )
        for model in ("llama-2-7b", "mistral-7b-v0.1")
    ],
    page=[rank_figure, study_tables],
)
