"""The small scale's tasks: real data and small real pre-trained models, a run in a quarter to half a minute of one core.

Learning rates come from a pilot on one seed. On SST-2 PiSSA was best at 5e-4 (accuracy 0.770, of five rates from 3e-4 to 4e-3) and
LoRA at 2e-3 (0.803), so each has its own. On GSM8K both were better the higher the rate, up to 8e-3; half of that is taken, for
the methods that were not tried. The other tasks had no pilot.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from balora.experiments.compare import Variant
from balora.experiments.reproduce.paths import Places

LORA_RATE = "2.0e-3"
"""Of LoRA on MiniLM-L6, from the pilot on SST-2."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Glue:
    folder: str
    columns: dict[str, Any]
    rows: int
    evaluated: str = ""
    length: int = 48
    task: str = "classification"
    batch: int = 16
    rate: float = 5.0e-4


_GLUE = {
    "sst2": _Glue(folder="SST-2", columns={"text": "sentence", "label": "label"}, rows=1280),
    "cola": _Glue(folder="CoLA", columns={"text": "sentence", "label": "label"}, rows=2560),
    "rte": _Glue(folder="RTE", columns={"text": ["sentence1", "sentence2"], "label": "label"}, rows=640, length=96),
    "stsb": _Glue(
        folder="STS-B",
        columns={"text": ["sentence1", "sentence2"], "score": "score"},
        rows=960,
        evaluated="[:750]",
        length=64,
        task="regression",
        batch=4,  # more steps: a regression's head starts far from the scores' mean
        rate=1.0e-3,
    ),
}


def minilm_on(places: Places, task: str = "sst2", **data: Any) -> dict[str, Any]:
    """MiniLM-L6 on a slice of a GLUE task.

    Args:
        places: Where model and data are.
        task: ``sst2``, ``cola``, ``rte`` or ``stsb``.
        data: Changes to the section ``data``.
    """
    glue = _GLUE[task]
    return {
        "model": places.minilm,
        "task": glue.task,
        "data": {
            "train": places.data(f"glue/{glue.folder}/train.tsv"),
            "subsample": glue.rows,
            "eval": places.data(f"glue/{glue.folder}/dev.tsv") + glue.evaluated,
            "max_length": glue.length,
            **glue.columns,
            **data,
        },
        "method": {"name": "balora", "rank": 8},
        "training": {
            **_QUIET,
            "learning_rate": glue.rate,
            "lr_scheduler_type": "linear",
            "num_train_epochs": 1,
            "per_device_train_batch_size": glue.batch,
            "train_sampling_strategy": "group_by_length",
        },
    }


def stories_on_gsm8k(places: Places, **data: Any) -> dict[str, Any]:
    """A Llama of 260 thousand parameters on GSM8K. It is too small for arithmetic: what can be compared is the loss on answers."""
    return {
        "model": places.stories,
        "task": "generation",
        "data": {
            "train": places.data("gsm8k/train.jsonl"),
            "subsample": 320,
            "eval": f"{places.data('gsm8k/test.jsonl')}[:100]",
            "prompt": "question",
            "response": "answer",
            "max_length": 256,
            **data,
        },
        "method": {"name": "balora", "rank": 8},
        "training": {
            **_QUIET,
            "learning_rate": 4.0e-3,
            "lr_scheduler_type": "cosine",
            "num_train_epochs": 1,
            "per_device_train_batch_size": 8,
        },
    }


def bart_on_g2p(places: Places, **data: Any) -> dict[str, Any]:
    """A BART of 750 thousand parameters on words and their phonemes, its own task, with a fifth of the answers swapped.

    It knows the task from pre-training. What fine-tuning on wrong answers leaves of that is what the loss on right ones shows.
    """
    pairs = places.data("g2p/pairs.jsonl")
    return {
        "model": places.bart,
        "task": "seq2seq",
        "data": {
            "train": pairs,
            "split": "train[:19600]",
            "subsample": 1280,
            "label_noise": 0.2,
            "eval": f"{pairs}[19600:]",
            "prompt": "word",
            "response": "phonemes",
            "target_tokenizer": f"{places.bart}/target",
            "max_length": 32,
            **data,
        },
        "method": {"name": "balora", "rank": 8},
        "training": {
            **_QUIET,
            "learning_rate": 1.0e-3,
            "lr_scheduler_type": "cosine",
            "num_train_epochs": 1,
            "per_device_train_batch_size": 16,
        },
    }


def at_rate(variant: Variant, rate: str) -> Variant:
    """A variant with its own learning rate.

    Example:
        >>> at_rate(Variant.parse("lora"), "2e-3").overrides
        ('training.learning_rate=2e-3',)
    """
    return dataclasses.replace(variant, overrides=(*variant.overrides, f"training.learning_rate={rate}"))


def quiet(**more: Any) -> dict[str, Any]:
    """The section ``training`` of a small run that writes as little as may be, with more of its keys."""
    return {**_QUIET, "num_train_epochs": 1, **more}


_QUIET = {
    "warmup_steps": 6,
    "per_device_eval_batch_size": 50,
    "logging_steps": 10,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
}
