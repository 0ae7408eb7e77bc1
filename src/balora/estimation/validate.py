"""`balora validate`: find everything wrong with a run, and estimate its size, before a weight is loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from balora.checkpoints.run_directory import RunDirectory
from balora.config.run_config import RunConfig
from balora.config.steps import optimizer_steps
from balora.data import Examples, Tokenized, describe_conditions, load_examples
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
from balora.loading.source import ModelSource
from balora.methods import find_method
from balora.methods.adapt import check_options
from balora.methods.init.calibration import check_enough, rows_wanted
from balora.methods.quantization.quantize import loaded_bits
from balora.objective import Objective
from balora.teacher.build import find_cache
from balora.training.generative_eval import answers_of
from balora.training.run import adapter_arguments, tokenize, training_arguments

T = TypeVar("T")


@dataclasses.dataclass
class ValidationReport:
    """Problems, notes and the estimate of a run."""

    problems: list[str] = dataclasses.field(default_factory=list)
    """Errors that would stop the run."""
    notes: list[str] = dataclasses.field(default_factory=list)
    """Remarks that do not stop the run."""
    estimate: Estimate | None = None
    rows: int = 0
    """Number of training examples."""

    def lines(self) -> list[str]:
        """Return the report as lines of text, problems first."""
        lines = [f"problem: {problem}" for problem in self.problems] + [f"note: {note}" for note in self.notes]
        if self.estimate is not None:
            lines += [f"examples              {self.rows:,}", *self.estimate.lines()]
        return [*lines, "This config cannot be run as it is." if self.problems else "This config can be run."]

    def check(self, step: Callable[[], T]) -> T | None:
        """Call a function of the run; a `BALoraError` becomes a problem."""
        try:
            return step()
        except BALoraError as error:
            if str(error) not in self.problems:
                self.problems.append(str(error))
            return None


def validate(config: RunConfig) -> ValidationReport:
    """Make the checks of a run, without its weights, and estimate its size.

    The run directory, the training arguments, the teacher cache, tokenizers, data, model and method are checked
    independently, so that one problem does not hide another.
    """
    report, source = ValidationReport(), ModelSource.from_config(config)
    report.check(RunDirectory(config).check)
    report.check(lambda: training_arguments(config))
    report.check(lambda: find_cache(config))
    tokenizer = report.check(lambda: load_tokenizer(source))
    target = report.check(lambda: load_target_tokenizer(source))
    examples = report.check(lambda: load_examples(config.data, config.task, config.seed))
    found = model_problems(source)
    report.problems += [problem for problem in found if problem not in report.problems]
    model_config = None if found else report.check(lambda: load_config(source))
    rows = None
    if tokenizer is not None and examples is not None:
        positions = None if model_config is None else max_positions(model_config)
        rows = report.check(lambda: tokenize(config, examples, tokenizer, target, positions))
        if rows is not None:
            report.notes += rows.notes
            report.check(lambda: answers_of(config, examples, rows, target or tokenizer))
            report.check(lambda: _check_row_count(config, len(rows.train)))
    model = None
    if model_config is not None:
        steps = optimizer_steps(len(rows.train), config.training) if rows else None
        model = report.check(lambda: _adapted(config, _empty_model(source, model_config, examples), steps))
    if examples is not None:
        report.notes += [describe_conditions(examples.conditions) + "."] if examples.conditions else []
        objective = report.check(lambda: Objective(config.regularization, config.task, num_labels=examples.num_labels))
        report.notes += objective.notices if objective else []
    if model is not None and rows is not None:
        report.rows = len(rows.train)
        _estimate(config, model, rows, report)
    return report


def _check_row_count(config: RunConfig, rows: int) -> None:
    """Refuse too few rows for a method that computes its initial values from data."""
    spec = find_method(config.method.name)
    if spec.needs_data:
        check_enough(rows_wanted(_method_options(config)), rows)


def _method_options(config: RunConfig) -> dict[str, Any]:
    defaults = {name: option.default for name, option in find_method(config.method.name).options.items()}
    return {**defaults, **config.method.adapt_options()}


def _empty_model(source: ModelSource, config: PretrainedConfig, examples: Examples | None) -> PreTrainedModel:
    """Build the model without its weights, on the meta device."""
    if examples is not None and examples.num_labels is not None:
        config.num_labels = examples.num_labels
    quantized = getattr(config, "quantization_config", None) or {}
    quantized = quantized if isinstance(quantized, dict) else quantized.to_dict()
    with torch.device("meta"):
        model = AUTO_CLASSES[source.task].from_config(
            config, dtype=_dtype(source, config), trust_remote_code=source.trust_remote_code
        )
    for name in ("load_in_4bit", "load_in_8bit"):  # a load sets this attribute
        if quantized.get(name):
            setattr(model, name.replace("load", "is_loaded"), True)
    return model


def _adapted(config: RunConfig, model: PreTrainedModel, steps: int | None) -> nn.Module:
    """Add the adapter to the empty model: this finds a rank that is too large and targets that match nothing."""
    spec = find_method(config.method.name)
    arguments = adapter_arguments(config)
    options = check_options(spec, **arguments, extra=config.method.adapt_options())
    if spec.needs_steps and steps is None:
        return model  # the data have a problem, so the number of steps is unknown
    return spec.build(model, dataclasses.replace(options, total_steps=steps)).train()


def _estimate(config: RunConfig, model: nn.Module, rows: Tokenized, report: ValidationReport) -> None:
    source, options, stored_bits = ModelSource.from_config(config), _method_options(config), loaded_bits(model)
    dtype, bits = _dtype(source, model.config), stored_bits or options.get("bits")
    training = config.training
    report.estimate = estimate(
        model,
        config.task,
        dtype=dtype,
        batch_size=training.get("per_device_train_batch_size", 8),
        length=max(len(ids) for ids in rows.train["input_ids"]),
        target_length=max(len(ids) for ids in rows.train["labels"]) if config.task == "seq2seq" else None,
        gradient_checkpointing=bool(training.get("gradient_checkpointing", False)),
        steps=optimizer_steps(len(rows.train), training),
        bits=bits,
        double_quantization=options.get("double_quantization", True),
    )
    if bits is not None and stored_bits is None:
        full = report.estimate.parameters * dtype.itemsize / 2**30
        report.notes.append(
            f"the weights are loaded in full precision, about {full:.2f} GiB in the machine's memory, and rounded to {bits} "
            "bits after the adapter's initial values have been computed."
        )


def _dtype(source: ModelSource, config: PretrainedConfig) -> torch.dtype:
    """Return the dtype of the weights after loading."""
    if source.dtype != "auto":
        return getattr(torch, source.dtype)  # type: ignore[no-any-return]
    return getattr(config, "dtype", None) or torch.float32
