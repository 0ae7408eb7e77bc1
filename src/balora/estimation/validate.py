"""`balora validate`: find everything wrong with a run, and estimate its size, before a weight is loaded."""

import dataclasses
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from balora.checkpoints.run_directory import RunDirectory
from balora.config.run_config import RunConfig
from balora.config.training_arguments import describe_large_batch, optimizer_steps
from balora.data.collate import lengths_of
from balora.data.examples import Examples
from balora.data.packing import pack_training_rows
from balora.data.perturbations import describe_perturbations
from balora.data.streaming import load_run_examples
from balora.data.tokenize import Tokenized, tokenize_examples
from balora.errors import BALoraError
from balora.estimation.memory import Estimate, estimate
from balora.loading import pretrained as loading
from balora.loading.head import head_classes
from balora.loading.source import ModelSource
from balora.loading.stored_values import check_stored_values
from balora.logging_control import quiet
from balora.methods import AdaptOptions, Method, find_method
from balora.methods.adaptation import check_options
from balora.methods.init.calibration import describe_fewer_rows
from balora.methods.quantization.quantize import loaded_bits
from balora.models.adapted_model import base_model_of
from balora.models.packed_attention import packing_problem
from balora.objective import Objective
from balora.teacher.cache import open_cache
from balora.teacher.row_keys import row_key
from balora.training.anchors.anchor_source import check_anchors
from balora.training.generative_eval import generative_metrics_for
from balora.training.run import IGNORED_DATA_SKIP, adapter_arguments, training_arguments

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
    """Make the checks of a run, without loading its weights, and estimate its size. Local weights are read for NaN.

    The run directory, the training arguments, the teacher cache, tokenizers, data, model and method are checked
    independently, so that one problem does not hide another.
    """
    report, source, spec = ValidationReport(), ModelSource.from_config(config), find_method(config.method.name)
    directory = RunDirectory(config)
    checkpoint = report.check(directory.resume_checkpoint)
    report.check(lambda: training_arguments(config))
    cache = report.check(lambda: open_cache(config))
    options = report.check(lambda: check_options(spec, **adapter_arguments(config), extra=config.method.options))
    tokenizer = report.check(lambda: loading.load_tokenizer(source))
    target = report.check(lambda: loading.load_target_tokenizer(source))
    examples = report.check(lambda: load_run_examples(config.data, config.task, config.seed, head=head_classes(source)))
    found = loading.model_problems(source)
    report.problems += [problem for problem in found if problem not in report.problems]
    model_config = None if found else report.check(lambda: loading.load_config(source))
    rows = model = steps = None
    if tokenizer is not None and examples is not None:
        positions = None if model_config is None else loading.max_positions(model_config)
        keywords = {"target_tokenizer": target, "max_positions": positions}
        rows = report.check(lambda: tokenize_examples(examples, tokenizer, config.data, config.task, **keywords))
        if rows is not None:
            singles = len(rows.train)
            rows = pack_training_rows(rows, config.data)
            report.rows = len(rows.train)
            report.notes += rows.notes
            if config.data.streaming:
                report.notes.append(f"data.streaming: only the first {report.rows:,} examples were looked at.")
            large = describe_large_batch(report.rows, config.training)
            report.notes += [large] if large and not config.data.streaming else []
            steps = report.check(lambda: optimizer_steps(report.rows, config.training))
            report.check(lambda: generative_metrics_for(config, examples, rows, target or tokenizer))
            if cache is not None:
                report.check(lambda: cache.require_rows([row_key(row) for row in rows.train]))
            if spec.needs_data and options is not None:
                fewer = describe_fewer_rows(options.extra, singles)
                report.notes += [fewer] if fewer else []
    if checkpoint is not None and examples is not None:
        report.check(lambda: directory.check_data(examples.digest))
        report.notes += [IGNORED_DATA_SKIP] if config.training.get("ignore_data_skip") else []
    if model_config is not None and source.model.directory is not None:
        report.check(lambda: _check_weights(source, model_config, examples, tokenizer))
        unread = report.check(lambda: check_stored_values(source))
        report.notes += [unread] if unread else []
    if model_config is not None and tokenizer is not None:
        report.check(lambda: check_anchors(config.anchor, config.task, tokenizer, model_config))
    if model_config is not None and options is not None:
        options = dataclasses.replace(options, total_steps=steps)
        model = report.check(lambda: _adapted_model(spec, options, source, model_config, examples, tokenizer))
    if config.data.packing and model is not None:
        problem = packing_problem(base_model_of(model).config, type(base_model_of(model)))
        report.problems += [problem] if problem else []
    if examples is not None:
        report.notes += [describe_perturbations(examples.perturbations) + "."] if examples.perturbations else []
        objective = report.check(lambda: Objective(config.regularization, config.task, num_labels=examples.num_labels))
        report.notes += objective.notices if objective else []
    if model is not None and rows is not None and options is not None and steps is not None:
        _estimate(config, model, rows, options, steps, report)
    return report


def _check_weights(
    source: ModelSource,
    config: PretrainedConfig,
    examples: Examples | None,
    tokenizer: PreTrainedTokenizerBase | None,
) -> None:
    """Make the checks of loading a local model without reading its weights; quantized weights need their own device."""
    if getattr(config, "quantization_config", None):
        return
    labels = (
        {"num_labels": 2} if examples is None else {"num_labels": examples.num_labels, "id2label": examples.id2label}
    )
    with quiet():
        loading.load_model(source, **labels, tokenizer=tokenizer, device="meta")


def _adapted_model(
    spec: Method,
    options: AdaptOptions,
    source: ModelSource,
    config: PretrainedConfig,
    examples: Examples | None,
    tokenizer: PreTrainedTokenizerBase | None,
) -> nn.Module:
    """Build the model on the meta device and adapt it: this finds a rank that is too large and targets that match nothing."""
    if examples is not None and examples.num_labels is not None:
        config.num_labels = examples.num_labels
    quantized = getattr(config, "quantization_config", None) or {}
    quantized = quantized if isinstance(quantized, dict) else quantized.to_dict()
    with torch.device("meta"):
        model = loading.from_config(source, config, _dtype(source, config))
    if tokenizer is not None and source.model.directory is None:  # `_check_weights` checks that of a local model
        loading.check_vocabulary(model, tokenizer)
    for name in ("load_in_4bit", "load_in_8bit"):  # a load sets this attribute
        if quantized.get(name):
            setattr(model, name.replace("load", "is_loaded"), True)
    if spec.needs_steps and options.total_steps is None:
        return model  # the number of steps is unknown, because the data have a problem
    return spec.build(model, options).train()


def _estimate(
    config: RunConfig, model: nn.Module, rows: Tokenized, options: AdaptOptions, steps: int, report: ValidationReport
) -> None:
    dtype, training = _dtype(ModelSource.from_config(config), model.config), config.training
    stored_bits = loaded_bits(model)
    bits = stored_bits or options.extra.get("bits")
    report.estimate = estimate(
        model,
        config.task,
        dtype=dtype,
        batch_size=training.get("per_device_train_batch_size", 8),
        length=max(lengths_of(rows.train, "input_ids")),
        target_length=max(lengths_of(rows.train, "labels")) if config.task == "seq2seq" else None,
        gradient_checkpointing=bool(training.get("gradient_checkpointing", False)),
        steps=steps,
        bits=bits,
        double_quantization=options.extra.get("double_quantization", True),
    )
    if bits is not None and stored_bits is None:
        full = report.estimate.parameters * dtype.itemsize / 2**30
        report.notes.append(
            f"the weights are loaded unquantized, about {full:.2f} GiB in the machine's memory, and rounded to {bits} "
            "bits after the adapter's initial values have been computed."
        )


def _dtype(source: ModelSource, config: PretrainedConfig) -> torch.dtype:
    """Return the dtype of the weights after loading."""
    if source.dtype != "auto":
        return getattr(torch, source.dtype)  # type: ignore[no-any-return]
    return getattr(config, "dtype", None) or torch.float32
