"""Helpers for the tests of methods: every method by name, adapted with everything that it needs."""

from __future__ import annotations

import torch

import balora
from balora import PretrainedTeacher, RegularizationConfig
from balora.methods import METHODS
from balora.objective import Objective
from balora.training.steps.classification_step import ClassificationStep
from balora.training.steps.generation_step import GenerationStep
from balora.training.steps.train_step import infer_task
from tiny import labelled_rows, pad_rows, pair_rows, token_rows

SMALL = {
    "loraga": {"samples": 4},
    "corda": {"samples": 6},
    "cordapp": {"samples": 3, "candidates": 2},
    "adalora": {"initial_rank": 6},
}
"""Options that make a method's start quick."""


def rows_for(model) -> list[dict]:
    """Training rows of the kind a model takes."""
    kind = type(model).__name__
    vocab = model.config.vocab_size
    if kind.endswith("ForSequenceClassification"):
        rows = labelled_rows(labels=model.config.num_labels, vocab=min(vocab, 97))
        if model.config.is_encoder_decoder:
            for row in rows:
                row["input_ids"][-1] = model.config.eos_token_id
        return rows
    return pair_rows(vocab=97) if model.config.is_encoder_decoder else token_rows(vocab=97)


def adapted(make, method: str, *, rank: int = 4, **options):
    """A freshly made model under a method."""
    return adapt_with_all(make(), method, rank=rank, **options)


def adapt_with_all(model, method: str, *, rank: int = 4, **options):
    """A model under a method, which is given all that any method asks for."""
    rows = rows_for(model)
    defaults = {"total_steps": 50, "calibration": lambda count: [pad_rows([row]) for row in rows[:count]]}
    return balora.adapt(model, method, rank=rank, **{**defaults, **SMALL.get(method, {}), **options})


def carries(make, method: str) -> str | None:
    """Why a model cannot carry a method, None when it can."""
    try:
        adapted(make, method)
    except balora.BALoraError as error:
        return str(error)
    return None


NAMES = tuple(METHODS)
UNROUNDED = tuple(n for n, m in METHODS.items() if getattr(m.options.get("bits"), "default", None) is None)
"""Methods that start as exactly the pre-trained model; the others round its weights first (methods/test_quantized.py)."""


def logits(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(**batch).logits


EVERY_TERM = {
    "consistency": 0.5, "diversity": 0.3, "spectral": 0.2, "spectral_rank": 2, "consistency_schedule": "constant",
    "focus_schedule": "constant",
}  # fmt: skip


def step_of(model, *, loss_path: str = "fused", teacher: PretrainedTeacher | None = None):
    """Return the train step of a model, with every term of the objective."""
    task = infer_task(model)
    config = RegularizationConfig(**EVERY_TERM)
    if task == "regression":
        config = RegularizationConfig(consistency=0.5, diversity=0.0, spectral=0.0)
    objective = Objective(config, task, num_labels=getattr(model.config, "num_labels", None), loss_path=loss_path)
    kind = GenerationStep if objective.generates else ClassificationStep
    return kind(model, objective, teacher or PretrainedTeacher(model))


def backward(step, batch: dict[str, torch.Tensor]):
    """The parts of one micro-batch, and the gradients of all that learns."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    weights = step.objective.weights(0.5)
    parts, _, _ = step.train(step.model, inputs, batch["labels"], weights, num_items=None, share=1.0)
    step.model.zero_grad()
    parts.loss.backward()
    return parts, {name: p.grad for name, p in step.model.named_parameters() if p.grad is not None}


def missing_gradients(model, batch: dict[str, torch.Tensor]) -> list[str]:
    """Trainable tensors that one step with every term gives no gradient."""
    _, gradients = backward(step_of(model), batch)
    return [name for name, p in model.named_parameters() if p.requires_grad and name not in gradients]
