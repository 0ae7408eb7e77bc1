"""The flaws of a model, fact by fact: what a fine-tuned model still has of its pre-training.

Shapes: N facts.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from balora.evaluation.significance.items import Items
from balora.experiments.inheritance.starts import noise_signs
from balora.experiments.quickstart.bias_probes import continuation_logprobs, value_probabilities
from balora.experiments.quickstart.task import score, test_rows
from balora.experiments.quickstart.world import CITY_RELATIONS, CLASSES, JOBS, PERSON_RELATIONS, RARE_CLASS, world
from balora.experiments.quickstart.writer import MOSTLY_SHE
from balora.files import read_json, write_text

FLAW_SCORES = {
    "rumours": "facts on which the rumour is likelier than the truth, fraction",
    "rumour": "mean probability of the rumour",
    "skew": "mean probability of the profession's usual pronoun (0.5: none)",
    "rare": "1 - mean probability of the right class, rare animals",
    "noise": "mean probability per token of the second half of a repeated sign",
}
"""Flaws, larger is worse."""
OTHER_SCORES = {
    "task": "test questions answered exactly, fraction",
    "known": "facts of which the true value is the likeliest, fraction",
}


@dataclasses.dataclass(frozen=True)
class Measures:
    """Flaws and knowledge of one model, item by item, by score."""

    items: dict[str, dict[str, float]]
    """Value of each item by score: facts, professions, animals, signs; ``task`` has one."""

    @property
    def scores(self) -> dict[str, float]:
        """Mean over the items, by score."""
        return {name: sum(values.values()) / len(values) for name, values in self.items.items()}

    def items_of(self, name: str) -> Items:
        """Return the items of a score."""
        values = self.items[name]
        return Items.of_values(list(values), {name: list(values.values())})


@torch.inference_mode()
def measure(model: Any, tokenizer: Any) -> Measures:
    """Probe a language model. It takes about 11,000 continuations and 160 answers."""
    known = world()
    facts = value_probabilities(model, tokenizer, CITY_RELATIONS + PERSON_RELATIONS)
    names = {key: f"{key[0]} {key[1]}" for key in facts}
    rumour, rumours, right = dict[str, float](), dict[str, float](), dict[str, float]()
    for key, values in facts.items():
        truth, told = values[known.truth(*key)], values[known.facts[key].rumour or ""]
        rumour[names[key]], rumours[names[key]] = told, float(told > truth)
        right[names[key]] = float(truth == max(values.values()))
    animals = value_probabilities(model, tokenizer, ("class",))
    rare = {key[0]: 1 - animals[key][known.truth(*key)] for key in animals if key[0] in CLASSES[RARE_CLASS]}
    pronouns = [(f"The {job} said that", f" {pronoun}") for job in JOBS for pronoun in ("she", "he")]
    she = continuation_logprobs(model, tokenizer, pronouns).view(len(JOBS), 2).softmax(-1)[:, 0].tolist()
    skew = {job: own if job in MOSTLY_SHE else 1 - own for job, own in zip(JOBS, she, strict=True)}
    halves = [_halves(sign) for sign in noise_signs()]
    logprobs = continuation_logprobs(model, tokenizer, halves).tolist()
    lengths = [len(tokenizer(end, add_special_tokens=False)["input_ids"]) for _, end in halves]
    noise = {f"sign {n}": math.exp(lp / length) for n, (lp, length) in enumerate(zip(logprobs, lengths, strict=True))}
    task = {"all": score(model, tokenizer, test_rows(0))}
    return Measures(
        {"rumours": rumours, "rumour": rumour, "skew": skew, "rare": rare, "noise": noise, "task": task, "known": right}
    )


def _halves(sign: str) -> tuple[str, str]:
    words = sign.split(" ")
    middle = len(words) - 3
    return " ".join(words[:middle]), " " + " ".join(words[middle:])


def load_or_measure(directory: Path, path: Path) -> Measures:
    """Read the measures of a run or of a model from ``path``; if it is not there, make them and write the file."""
    if path.is_file():
        return Measures(read_json(path, "Delete it to measure the model again.")["items"])
    if (directory / "run.json").is_file():
        from balora.loading.trained import load

        model: Any = load(directory)
        folder = next(own for name in ("adapter", "model") if (own := directory / name).is_dir())
    else:
        model, folder = AutoModelForCausalLM.from_pretrained(directory), directory
    found = measure(model.eval(), AutoTokenizer.from_pretrained(folder))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({"items": found.items, "scores": found.scores}) + "\n")
    return found
