"""Trainers over tiny models, with quiet defaults for everything that a test does not set."""

from __future__ import annotations

import gc

import torch
from torch import nn
from transformers import TrainerCallback, TrainingArguments

import balora
from balora import BALoraTrainer, RegularizationConfig
from tiny import pad_rows, token_rows

# accelerate collects garbage at the start of each run, which takes half a second. Frozen objects are skipped.
gc.freeze()

CONSTANT = {"consistency_schedule": "constant", "focus_schedule": "constant"}
TOKEN_TERMS = RegularizationConfig(consistency=0.5, diversity=0.3, spectral=0.0, **CONSTANT)
ALL_TERMS = RegularizationConfig(consistency=0.5, diversity=0.3, spectral=0.2, **CONSTANT)
OFF = RegularizationConfig.off()


def arguments(folder, **changes) -> TrainingArguments:
    defaults = {
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "max_steps": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return TrainingArguments(str(folder), **{**defaults, **changes})


def trainer(model: nn.Module, folder, *, kind: type = BALoraTrainer, config=ALL_TERMS, rows=None, **changes):
    """Make a trainer over ``rows``; ``changes`` are arguments of the Trainer or of TrainingArguments."""
    own = {
        name: changes.pop(name)
        for name in (
            "eval_dataset",
            "callbacks",
            "compute_metrics",
            "loss_path",
            "initial",
            "data_collator",
            "optimizers",
            "teacher_cache",
            "anchors",
            "processing_class",
        )
        if name in changes
    }
    if issubclass(kind, BALoraTrainer):
        own["regularization"] = config
    return kind(
        model=model,
        args=arguments(folder, **changes),
        train_dataset=token_rows() if rows is None else rows,
        **{"data_collator": pad_rows, **own},
    )


def history(run, name: str) -> list[float]:
    """Return every logged value of one name, in order."""
    return [entry[name] for entry in run.state.log_history if name in entry]


def flat(model: nn.Module) -> torch.Tensor:
    """Return the trainable tensors as one vector."""
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])


class Gradients(TrainerCallback):
    """Record the optimizer's gradients of each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        self.steps.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})


class Batches:
    """Collate and record every batch, in the order of use."""

    def __init__(self) -> None:
        self.used: list[dict[str, torch.Tensor]] = []

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        batch = pad_rows(rows)
        self.used.append({name: value.clone() for name, value in batch.items()})
        return batch


class Do(TrainerCallback):
    """Run a function at one event of one step."""

    def __init__(self, event: str, step: int, action) -> None:
        def on_event(args, state, control, **_) -> None:
            if state.global_step == step:
                action()

        setattr(self, event, on_event)


def pissa(make, **options) -> nn.Module:
    return balora.adapt(make(), method="pissa", **{"rank": 4, **options})
