"""Figure 6: LoRA, PiSSA and BA-LoRA over ranks, with full fine-tuning as a level."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from balora.experiments.compare import Comparison, Variant
from balora.experiments.compare.tables import to_markdown
from balora.experiments.reproduce.experiment import Experiment, Study, from_recipe
from balora.experiments.reproduce.paths import Places
from balora.experiments.reproduce.small import bart_on_g2p, stories_on_gsm8k
from balora.plots.curves import rank_figure
from balora.plots.panel import Panel, Point

RANK = "method.rank"
LEVEL = "full"
_AXIS = {"loss": "loss on answers (nats per token)", "accuracy": "accuracy"}


def _variants(full_rate: str) -> list[Variant]:
    """Full fine-tuning moves every weight, and wants a lower rate than an adapter."""
    methods = [Variant.parse(name) for name in ("lora", "pissa", "balora")]
    return [*methods, Variant.parse(LEVEL, [f"training.learning_rate={full_rate}"])]


def alpha_follows(config: Any, places: Places) -> dict[str, Any]:
    """A config whose alpha is the rank at every rank, as in the paper's own setting (128 and 128)."""
    values = config(places)
    method = {key: value for key, value in (values.get("method") or {}).items() if key not in ("rank", "alpha")}
    return {**values, "method": method}


def _study(config: Any, **more: Any) -> Study:
    return Study(config=functools.partial(alpha_follows, config), **more)


SMALL = [
    # Its key and value layers are 64 × 32, so no rank is above 32.
    _study(
        stories_on_gsm8k,
        name="gsm8k",
        title="GSM8K answers, a Llama of 260 k parameters",
        variants=_variants("1e-3"),
        baseline=LEVEL,
        score="loss",
        axes={RANK: [1, 2, 8, 32]},
        seconds=25.0,
    ),
    _study(
        bart_on_g2p,
        name="g2p",
        title="Phonemes, a BART of 750 k parameters",
        variants=_variants("1e-4"),
        baseline=LEVEL,
        score="loss",
        axes={RANK: [1, 8, 64]},
        seconds=20.0,
    ),
]
PAPER = [
    _study(
        from_recipe(f"{model}/metamathqa"),
        name=model,
        title=f"{model} on MetaMathQA",
        variants=_variants("2e-5"),
        baseline=LEVEL,
        score="loss",
        axes={RANK: [1, 2, 4, 8, 16, 32, 64, 128]},
    )
    for model in ("llama-2-7b", "mistral-7b-v0.1")
]


def show(made: Mapping[str, Comparison], studies: Sequence[Study], folder: Path) -> list[str]:
    """The figure, and below it the numbers it is drawn from."""
    panels = [_panel(made[study.name], study) for study in studies if study.name in made]
    drawn = [panel for panel in panels if panel.series or panel.level]
    written = rank_figure(drawn, folder / "figure6") if drawn else []
    image = [f"![Score over rank]({written[0].name})"] if written else []
    words = "Means over seeds; bars and band are one standard deviation. The dashed line is full fine-tuning."
    tables = [f"### {study.title}\n\n{to_markdown(made[study.name])}" for study in studies if study.name in made]
    return [*image, words, *tables]


def _panel(comparison: Comparison, study: Study) -> Panel:
    lines: dict[str, list[Point]] = {}
    level = None
    for group in comparison.groups:
        spread = group.scores.get(study.score)
        if spread is None:
            continue
        if RANK in group.axes:
            lines.setdefault(group.variant, []).append(Point(group.axes[RANK], spread.mean, spread.deviation))
        else:
            level = ("full fine-tuning", spread)
    y_label = _AXIS.get(study.score, study.score)
    return Panel(title=study.title, x_label="rank", y_label=y_label, series=lines, level=level)


FIGURE6 = Experiment(
    name="figure6",
    title="Ranks from 1 to 128, and full fine-tuning",
    source="appendix C.4, figure 6",
    reported=(
        "Our copy has no numbers of the paper's figure; its text says that BA-LoRA is best at every rank, and that BA-LoRA and "
        "PiSSA pass full fine-tuning at higher ranks."
    ),
    small=SMALL,
    paper=PAPER,
    limits=(
        "A language model of 260 thousand parameters on 320 rows of GSM8K (by its loss: it cannot do arithmetic), and a BART "
        "of 750 thousand that spells words as phonemes on 1,280 words, of which a fifth have another word's answer: it knows the "
        "task, so less learning is better there. In place of LLaMA-2-7B and Mistral-7B on MetaMathQA; ranks as far as their layers "
        "allow; learning rates untuned."
    ),
    show=show,
)
