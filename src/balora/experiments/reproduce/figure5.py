"""Figure 5: LoRA, PiSSA and BA-LoRA on many models, each as it is and in 4 bits."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from balora.experiments.compare import Comparison, Variant
from balora.experiments.quickstart import model_folder
from balora.experiments.quickstart.task import NOISE, test_rows, train_rows
from balora.experiments.reproduce.columns import CAPTION, caution, columns_table, verdict
from balora.experiments.reproduce.evaluations import evaluated_on
from balora.experiments.reproduce.experiment import SEEDS, Experiment, Study, from_recipe
from balora.experiments.reproduce.nlg import by_score
from balora.experiments.reproduce.paths import Places
from balora.experiments.reproduce.prepare import Preparation
from balora.experiments.reproduce.small import bart_on_g2p, quiet, stories_on_gsm8k
from balora.files import write_text
from balora.plots.dot_plot import DotPanel, dots_figure

PAIRS = {"lora": "qlora", "pissa": "qpissa", "balora": "qbalora"}
"""A method, and the same with the frozen weights in 4 bits."""
VARIANTS = [Variant.parse(name) for pair in PAIRS.items() for name in pair]
BASELINE = "pissa"
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
"""The paper's ten, by recipe."""


def quickstart_on_its_task(places: Places) -> dict[str, Any]:
    """The quickstart's Llama on its task: terse answers about its own small world, a fifth of them wrong in training."""
    return {
        "model": str(model_folder()),
        "task": "generation",
        "data": {
            "train": str(places.prepared / "train.jsonl"),
            "subsample": 1280,
            "eval": str(places.prepared / "test.jsonl"),
            "prompt": "prompt",
            "response": "response",
            "prompt_template": "{prompt}",
            "max_length": 64,
        },
        "method": {"name": "balora", "rank": 8},
        "training": quiet(learning_rate=2.0e-3, lr_scheduler_type="cosine", per_device_train_batch_size=16),
    }


def _make(places: Places) -> dict[str, Any]:
    rows = {"train": train_rows(SEEDS[0]), "test": test_rows(SEEDS[0])}
    for name, found in rows.items():
        write_text(places.prepared / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in found))
    return {name: len(found) for name, found in rows.items()}


PREPARATION = Preparation(
    title="Questions and answers of the quickstart's task", needs=lambda places: (), make=_make, seconds=1.0
)
_small = functools.partial(Study, variants=VARIANTS, baseline=BASELINE, score="loss")
SMALL = [
    _small(name="stories260k", title="stories260K, GSM8K", config=stories_on_gsm8k, seconds=20.0),
    _small(name="bart-g2p", title="bart-g2p, phonemes", config=bart_on_g2p, seconds=16.0),
    _small(name="quickstart", title="quickstart's Llama, its task", config=quickstart_on_its_task, seconds=20.0),
]
PAPER = [
    Study(
        name=recipe,
        title=title,
        config=from_recipe(f"{recipe}/metamathqa-codefeedback"),
        variants=VARIANTS,
        baseline=BASELINE,
        score="gsm8k/accuracy",
        further=("humaneval/pass@1",),
        evaluation=evaluated_on("gsm8k", "humaneval"),
    )
    for recipe, title in MODELS.items()
]


def show(made: Mapping[str, Comparison], studies: Sequence[Study], folder: Path) -> list[str]:
    """The figure, and below it the numbers, what differs from PiSSA, and what differs from QPiSSA in 4 bits."""
    drawn = [study for study in by_score(studies) if study.name in made]
    panels = [panel_of(made[study.name], study) for study in drawn]
    small = not any(study.evaluation for study in studies)
    kinds = ("32 bits" if small else "16 bits", "frozen weights in 4 bits")
    columns = max(1 + len(study.further) for study in studies)  # a model's scores side by side, else three models
    written = dots_figure(panels, folder / "figure5", kinds, columns if columns > 1 else 3) if panels else []
    image = [f"![Scores by model and method]({written[0].name})"] if written else []
    words = []
    for study in drawn:
        where = f"- {study.title}, {study.score}"
        words.append(f"{where}, {verdict(made[study.name], study.score, BASELINE, list(PAIRS))}")
        words.append(
            f"{where}, 4 bits, {verdict(made[study.name], study.score, PAIRS[BASELINE], list(PAIRS.values()))}"
        )
    caption = "In the figure means over seeds; bars are one standard deviation."
    table = columns_table(made, list(by_score(studies)))
    return [*image, caption, table, CAPTION.format(baseline=BASELINE), caution(made), "\n".join(words)]


def panel_of(made: Comparison, study: Study) -> DotPanel:
    """A model's six numbers."""
    spreads = {group.variant: group.scores.get(study.score) for group in made.groups}

    score = "loss on answers (nats per token)" if study.score == "loss" else study.score
    rows = {name: (spreads.get(name), spreads.get(four)) for name, four in PAIRS.items()}
    return DotPanel(title=study.title, x_label=score, rows=rows)


FIGURE5 = Experiment(
    name="figure5",
    title="Models, methods and precisions",
    source="appendix C.3, figure 5",
    reported=(
        "Our copy has no numbers of the paper's figure; its text says that BA-LoRA is best on each of ten models and both "
        "scores, in 16 bits and in 4."
    ),
    small=SMALL,
    paper=PAPER,
    limits=(
        f"Three models of 260 thousand to 750 thousand parameters in place of ten of 7 to 70 billion, by their loss on "
        f"held-out answers in place of GSM8K and HumanEval: stories260K on GSM8K, bart-g2p on words and phonemes with a fifth "
        f"of the answers swapped, and the quickstart's Llama on its own task with {NOISE:.0%} of the answers wrong. What is "
        f"not in 4 bits is in 32, as a processor computes. Small models lose more by 4 bits than large ones."
    ),
    show=show,
    prepare=PREPARATION,
)
