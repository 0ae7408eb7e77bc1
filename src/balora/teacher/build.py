"""`balora teacher`: ask the pre-trained model once about every row of a run, and keep what it says on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from balora.config.run_config import RunConfig
from balora.data import load_examples, make_collator, tokenize_examples
from balora.errors import BALoraError, raise_all
from balora.loading.pretrained import load_model, load_target_tokenizer, load_tokenizer, max_positions
from balora.loading.source import ModelSource
from balora.methods.fingerprint import fingerprint
from balora.teacher.cache import Identity, TeacherCache, tokenizer_digest
from balora.teacher.cache_builder import Built, TeacherWriter
from balora.teacher.row_keys import row_key

TOP_K = 64
"""Tokens kept to a position unless asked otherwise."""


def build_teacher(settings: RunConfig, top_k: int = TOP_K, say: Callable[[str], None] = lambda line: None) -> Built:
    """Build or complete the cache that ``teacher_cache`` names, for the run's training and evaluation rows.

    The rows held out are asked about too, so that a run whose seed draws others finds its own.

    Raises:
        BALoraError: The settings name no folder or no task that takes one, or the folder holds another teacher's cache.
    """
    raise_all(_unfit(settings, top_k), "The teacher cache cannot be built")
    folder = Path(settings.teacher_cache)
    source = ModelSource.from_config(settings)
    tokenizer, target = load_tokenizer(source), load_target_tokenizer(source)
    examples = load_examples(settings.data, settings.task, settings.seed)
    model = load_model(source, tokenizer=tokenizer)
    tokenized = tokenize_examples(
        examples,
        tokenizer,
        settings.data,
        settings.task,
        target_tokenizer=target,
        max_positions=max_positions(model.config),
    )
    identity = identity_of(settings, model, tokenizer_digest(tokenizer, target))
    parts = [part for part in (tokenized.train, tokenized.eval) if part is not None]
    cpu = not torch.cuda.is_available() or settings.training.get("use_cpu")
    writer = TeacherWriter(
        folder,
        model.to("cpu" if cpu else "cuda"),
        identity,
        make_collator(settings.task, tokenizer, model),
        shift=settings.task == "generation",
        top_k=top_k,
        batch_size=int(settings.training.get("per_device_train_batch_size", 8)),
        autocast=next((dtype for key, dtype in _NARROW.items() if settings.training.get(key)), None),
    )
    return writer.add([row for part in parts for row in part], say)


def identity_of(settings: RunConfig, model: nn.Module, tokenizers: str) -> Identity:
    """Whose teacher a run has; ``model`` as it was loaded, before a method is applied."""
    return Identity(
        model=fingerprint(model.named_parameters()),
        tokenizer=tokenizers,
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        temperature=settings.regularization.temperature,
    )


def open_for_run(
    settings: RunConfig, model: nn.Module, tokenizers: str, rows: Sequence[dict[str, Any]]
) -> TeacherCache | None:
    """The cache a run's settings name, None where they name none or the run needs none.

    Raises:
        BALoraError: It is not there, or not this run's; the reasons are given.
    """
    cache = find_cache(settings)
    if cache is None:
        return None
    cache.require(identity_of(settings, model, tokenizers), (row_key(row) for row in rows))
    return cache


def find_cache(settings: RunConfig) -> TeacherCache | None:
    """The cache a run's settings name, whoever's it is; None where they name none or the run needs none.

    Raises:
        BALoraError: The task takes none, or it is not there or damaged.
    """
    if settings.teacher_cache in ("auto", "off"):
        return None
    if settings.task in ("classification", "regression"):
        raise BALoraError(
            f"Task {settings.task} keeps its teacher's outputs in memory; set teacher_cache to auto or off."
        )
    return TeacherCache(Path(settings.teacher_cache)) if settings.regularization.consistency else None


def _unfit(settings: RunConfig, top_k: int) -> list[str]:
    problems = []
    if settings.teacher_cache in ("auto", "off"):
        problems.append(
            "teacher_cache names no folder; set it in the config or on the command line, as teacher_cache=DIR."
        )
    if settings.task in ("classification", "regression"):
        problems.append(f"Task {settings.task} keeps its teacher's outputs in memory by itself and needs no folder.")
    if top_k < 1:
        problems.append(f"At least one token is to be kept to a position, not {top_k}.")
    return problems


_NARROW = {"bf16": torch.bfloat16, "fp16": torch.float16}
