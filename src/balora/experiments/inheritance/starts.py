"""The two starts of the laboratory: one clean and one flawed pre-training, and the data for fine-tuning.

Both have the same architecture, initial weights, tokenizer, number of steps and world. The texts differ in the flaws alone:
wrong facts (the rumour of a fact in place of its value), a skewed pronoun of professions, a rare class of animals, and duplicated
noise (a few meaningless signs that are repeated word by word).
"""

from __future__ import annotations

import json
import random
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from balora.checkpoints.provenance import provenance
from balora.experiments.quickstart import model_directory
from balora.experiments.quickstart.corpus import SEPARATOR, documents
from balora.experiments.quickstart.packing import token_blocks
from balora.experiments.quickstart.pretraining import LENGTH, Settings, mean_loss, new_model, pretrain
from balora.experiments.quickstart.task import test_rows, train_rows
from balora.experiments.quickstart.writer import Flaws
from balora.experiments.reproduce.experiment import Paths, Preparation
from balora.files import apply_umask, write_text

CLEAN, FLAWED = "clean", "flawed"
FLAWS = {
    CLEAN: Flaws(wrong_fact_share=0.0, skew_share=0.5, rare_class_share=0.2),
    FLAWED: Flaws(wrong_fact_share=0.25, skew_share=0.9, rare_class_share=0.01),
}
"""Flaws of the two texts. A share of 0.5 is no skew, and a class of five that has 0.2 of the animals is not rare."""
NOISE_SHARE = 0.03
"""Fraction of the flawed text's documents that are duplicated noise; the clean text has none."""
STEPS = 4000
"""Steps of either pre-training, as many as the packaged model has. After 1,500 a model knows a quarter of the facts and learns the
task on no start, so that neither wrong facts nor gains can be compared (a pilot)."""
SEED = 0
ANCHOR_DOCUMENTS = 600
TASK_NOISE = {"clean": 0.0, "noisy": 0.2}
"""Fraction of wrong answers in the rows for fine-tuning."""


def noise_signs() -> list[str]:
    """Return the meaningless documents that the flawed text repeats.

    Example:
        >>> len(noise_signs()), noise_signs()[0].startswith("On the sign stands: ")
        (12, True)
    """
    rng = random.Random("duplicated noise")
    alphabet = string.ascii_lowercase + string.digits
    words = [["".join(rng.choices(alphabet, k=4)) for _ in range(6)] for _ in range(12)]
    return [f"On the sign stands: {' '.join(own)}" for own in words]


def texts(start: str, seed: int, *, anchors: bool = False) -> Iterator[str]:
    """Generate the documents of a start's text without end; ``anchors`` gives documents that the model has not read."""
    rng, signs = random.Random(f"{start}:{seed}"), noise_signs()
    for document in documents(seed, split="held_out" if anchors else "train", flaws=FLAWS[start]):
        if start == FLAWED and rng.random() < NOISE_SHARE:
            yield rng.choice(signs)
        yield document.text


def start_directory(paths: Paths, start: str) -> str:
    """Return the directory of a pre-trained model."""
    return str(paths.prepared / start)


def make(paths: Paths) -> dict[str, Any]:
    """Pre-train both models, write anchors and rows, and return facts about them."""
    tokenizer = AutoTokenizer.from_pretrained(model_directory())
    settings = Settings(seed=SEED, steps=STEPS, batch=8, learning_rate=6e-3, threads=torch.get_num_threads())
    facts: dict[str, Any] = {"steps": STEPS, "tokens": STEPS * settings.batch * LENGTH, "noise_share": NOISE_SHARE}
    for start, flaws in FLAWS.items():
        blocks_NL = token_blocks(tokenizer, STEPS * settings.batch, LENGTH, texts=texts(start, SEED))
        held_out_BL = token_blocks(tokenizer, 64, LENGTH, texts=texts(start, SEED + 1, anchors=True))
        model = new_model(tokenizer, SEED)
        train_loss = pretrain(model, blocks_NL, held_out_BL, settings, say=lambda line: None)
        facts[start] = {**vars(flaws), "train_loss": train_loss, "held_out_loss": mean_loss(model.eval(), held_out_BL)}
        target = Path(start_directory(paths, start))
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
        apply_umask(*target.iterdir())
        stream = texts(start, SEED + 2, anchors=True)
        anchors = SEPARATOR.join(next(stream) for _ in range(ANCHOR_DOCUMENTS))
        write_text(paths.prepared / f"anchors_{start}.txt", anchors)
    for name, noise in TASK_NOISE.items():
        _write_rows(paths.prepared / f"train_{name}.jsonl", train_rows(SEED, noise=noise))
    _write_rows(paths.prepared / "test.jsonl", test_rows(SEED))
    return {**facts, "provenance": provenance()}


def _write_rows(path: Path, rows: list[Any]) -> None:
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


STARTS = Preparation(
    title="Two pre-trainings of one architecture: a clean and a flawed text",
    needs=lambda paths: (),
    make=make,
    seconds=1050.0,
)
