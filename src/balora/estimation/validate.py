"""`balora validate`: everything wrong with a run, at once, and what it would take, before a weight is loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from balora.checkpoints.run_directory import RunDirectory
from balora.config.run_config import RunConfig
from balora.config.steps import optimizer_steps
from balora.data import Examples, Tokenized, describe_conditions, load_examples, tokenize_examples
from balora.errors import BALoraError
from balora.estimation.memory import Estimate, estimate
from balora.loading.pretrained import (
    AUTO_CLASSES,
    load_config,
    load_target_tokenizer,
    load_tokenizer,
    max_positions,
    model_problems,
)
from balora.methods import find_method
from balora.methods.adapt import check_options
from balora.methods.init.calibration import check_enough, rows_wanted
from balora.methods.quantization.quantize import loaded_bits
from balora.objective import Objective
from balora.teacher.cache import open_cache
from balora.training.generative_eval import generative_metrics_for
from balora.training.run import targets_of, training_arguments

T = TypeVar("T")


@dataclasses.dataclass
class Preflight:
    """What was found."""

    problems: list[str] = dataclasses.field(default_factory=list)
    """Each would stop the run."""
    notes: list[str] = dataclasses.field(default_factory=list)
    """Worth knowing; the run goes on."""
    estimate: Estimate | None = None
    rows: int = 0

    def lines(self) -> list[str]:
        """For people: problems first."""
        lines = [f"problem: {problem}" for problem in self.problems] + [f"note: {note}" for note in self.notes]
        if self.estimate is not None:
            lines += [f"examples              {self.rows:,}", *self.estimate.lines()]
        return [*lines, "This config cannot be run as it is." if self.problems else "This config can be run."]

    def attempt(self, step: Callable[[], T]) -> T | None:
        """Run a check; a user's mistake becomes a problem in the list."""
        try:
            return step()
        except BALoraError as error:
            if str(error) not in self.problems:
                self.problems.append(str(error))
            return None


def preflight(settings: RunConfig) -> Preflight:
    """Check the folder, the training arguments, the tokenizer, the data and the method on the model's sizes, and estimate.

    Each check goes as far as it can by itself, so that one problem does not hide the next.
    """
    report = Preflight()
    report.attempt(RunDirectory(settings).check)
    report.attempt(lambda: training_arguments(settings))
    report.attempt(lambda: open_cache(settings))
    tokenizer = report.attempt(lambda: load_tokenizer(settings))
    target = report.attempt(lambda: load_target_tokenizer(settings))
    examples = report.attempt(lambda: load_examples(settings.data, settings.task, settings.seed))
    wrong = model_problems(settings)
    report.problems += [problem for problem in wrong if problem not in report.problems]
    config = None if wrong else report.attempt(lambda: load_config(settings))
    rows = None
    if tokenizer is not None and examples is not None:
        rows = report.attempt(lambda: _tokenize(settings, examples, tokenizer, target, config, report))
        if rows is not None:
            report.attempt(lambda: _check_rows(settings, len(rows.train)))
    model = None
    if config is not None:
        steps = optimizer_steps(len(rows.train), settings.training) if rows else None
        model = report.attempt(lambda: _adapted(settings, empty_model(settings, config, examples), steps))
    if examples is not None:
        report.notes += [describe_conditions(examples.conditions) + "."] if examples.conditions else []
        objective = report.attempt(
            lambda: Objective(settings.regularization, settings.task, num_labels=examples.num_labels)
        )
        report.notes += objective.notices if objective else []
    if model is not None and rows is not None:
        report.rows = len(rows.train)
        report.estimate = _estimate(settings, model, rows)
        bits, _ = _rounded(settings, model)
        if bits is not None and loaded_bits(model) is None:
            whole = report.estimate.parameters * _dtype(settings, model.config).itemsize / 2**30
            report.notes.append(
                f"the weights are loaded whole, about {whole:.2f} GiB in the machine's memory, and rounded to {bits} bits once the "
                "start has been computed."
            )
    return report


def _tokenize(
    settings: RunConfig,
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    target: PreTrainedTokenizerBase | None,
    config: PretrainedConfig | None,
    report: Preflight,
) -> Tokenized:
    rows = tokenize_examples(
        examples,
        tokenizer,
        settings.data,
        settings.task,
        target_tokenizer=target,
        max_positions=None if config is None else max_positions(config),
    )
    report.notes += rows.notes
    report.attempt(lambda: generative_metrics_for(settings, examples, rows, target or tokenizer))
    return rows


def _check_rows(settings: RunConfig, rows: int) -> None:
    """Whether there is enough to start from, for a method that starts from the data."""
    spec = find_method(settings.method.name)
    if spec.needs_data:
        defaults = {name: option.default for name, option in spec.options.items()}
        check_enough(rows_wanted({**defaults, **settings.method.adapt_options()}), rows)


def empty_model(settings: RunConfig, config: PretrainedConfig, examples: Examples | None) -> PreTrainedModel:
    """The model without its weights, on the meta device."""
    if examples is not None and examples.num_labels is not None:
        config.num_labels = examples.num_labels
    quantized = getattr(config, "quantization_config", None) or {}
    quantized = quantized if isinstance(quantized, dict) else quantized.to_dict()
    with torch.device("meta"):
        model = AUTO_CLASSES[settings.task].from_config(
            config, dtype=_dtype(settings, config), trust_remote_code=settings.trust_remote_code
        )
    for name in ("load_in_4bit", "load_in_8bit"):  # loaded, it will say so of itself
        if quantized.get(name):
            setattr(model, name.replace("load", "is_loaded"), True)
    return model


def _adapted(settings: RunConfig, model: PreTrainedModel, steps: int | None) -> nn.Module:
    """The model with its adapter, sizes only: finds a rank too large and targets that match nothing."""
    spec = find_method(settings.method.name)
    options = check_options(
        spec,
        settings.method.rank,
        settings.method.alpha,
        settings.method.dropout,
        targets_of(settings),
        settings.seed,
        settings.method.adapt_options(),
    )
    if spec.needs_steps and steps is None:
        return model  # the data is broken, which is said; how many steps there would be is not known
    return spec.build(model, dataclasses.replace(options, total_steps=steps)).train()


def _estimate(settings: RunConfig, model: nn.Module, rows: Tokenized) -> Estimate:
    bits, double = _rounded(settings, model)
    return estimate(
        model,
        settings.task,
        dtype=_dtype(settings, model.config),
        batch=settings.training.get("per_device_train_batch_size", 8),
        length=max(len(ids) for ids in rows.train["input_ids"]),
        target_length=max(len(ids) for ids in rows.train["labels"]) if settings.task == "seq2seq" else None,
        checkpointing=bool(settings.training.get("gradient_checkpointing", False)),
        steps=optimizer_steps(len(rows.train), settings.training),
        bits=bits,
        double=double,
    )


def _dtype(settings: RunConfig, config: PretrainedConfig) -> torch.dtype:
    """Of the weights as they are loaded."""
    if settings.dtype != "auto":
        return getattr(torch, settings.dtype)  # type: ignore[no-any-return]
    return getattr(config, "dtype", None) or torch.float32


def _rounded(settings: RunConfig, model: nn.Module) -> tuple[int | None, bool]:
    """In how many bits the frozen weights will be, and whether their scales are rounded too."""
    options = find_method(settings.method.name).options
    asked = {**{name: option.default for name, option in options.items()}, **settings.method.adapt_options()}
    return loaded_bits(model) or asked.get("bits"), asked.get("double_quantization", True)
