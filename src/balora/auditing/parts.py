"""The parts of an audit: what can be measured for a model's task with the data at hand, and why the rest is not."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from balora.auditing.bias import Bias, read_pairs
from balora.auditing.classifiers import Classifier
from balora.auditing.documents import Rows, read_documents, read_rows, run_rows
from balora.auditing.drift import Drift
from balora.auditing.measure import Part
from balora.auditing.model_pair import ModelPair
from balora.auditing.noise import Noise
from balora.auditing.options import AuditOptions
from balora.auditing.samples import Continuations, Samples
from balora.auditing.token_pass import TokenPass
from balora.auditing.weights import Weights
from balora.errors import BALoraError
from balora.evaluation.model_under_test import LoadedModel

GENERATED = 64
"""Sequences that each model writes if there is no text."""


@dataclasses.dataclass
class Plan:
    """Parts in their order, and reasons for what is left out."""

    parts: list[Part] = dataclasses.field(default_factory=list)
    not_measured: dict[str, str] = dataclasses.field(default_factory=dict)


def plan_parts(pair: ModelPair, loaded: LoadedModel, options: AuditOptions, work: Path) -> Plan:
    """Choose the parts for a model, and read their documents and rows; ``loaded`` is the base.

    Raises:
        BALoraError: A file cannot be read, or the model's task has no audit.
    """
    plan = Plan()
    task = loaded.task
    if task == "regression":
        plan.not_measured["drift, collapse and noise"] = (
            "the model predicts a number; only its weights and tasks are audited"
        )
    elif task == "classification":
        _classification(plan, pair, loaded, options, work)
    else:
        _language_model(plan, pair, loaded, options, work)
    if not options.bias:
        plan.not_measured["bias"] = (
            "no sets of pairs were given (--bias crows_pairs,winobias,stereoset --bias-data DIR)"
        )
    if options.weights:
        plan.parts.append(Weights(work / "weights", lambda: pair.shared, options.seed))
    else:
        plan.not_measured["weights"] = "it was turned off"
    if not options.tasks:
        plan.not_measured["tasks"] = "no evaluations were named (--tasks gsm8k,...)"
    return plan


def _language_model(plan: Plan, pair: ModelPair, loaded: LoadedModel, options: AuditOptions, work: Path) -> None:
    causal = loaded.task == "generation"

    def tokens(name: str, rows: Any, *, compare: bool) -> TokenPass:
        return TokenPass(
            work / name, rows, causal=causal, batch_size=options.batch_size, compare=compare, seed=options.seed
        )

    def drift(name: str, rows: Any, about: str) -> Drift:
        return Drift(name, tokens(name, rows, compare=True), rows, about, options.seed)

    count = options.generate
    if count is None:
        count = 0 if options.text is not None else GENERATED
    if count and not causal:
        if options.generate:
            plan.not_measured["samples"] = "only causal language models are sampled"
        count = 0
    if options.text is not None:
        documents = read_documents(
            options.text, options.columns, loaded, tokens=options.tokens, count=options.documents, seed=options.seed
        )
        rows = documents.rows
        plan.parts.append(drift("drift", lambda: rows, documents.source))
        if causal:
            plan.parts.append(Continuations(work / "continuations", lambda: rows))
    if count:
        samples = Samples(work / "samples", count, options.generated_tokens, options.seed)
        plan.parts.append(samples)
        name = "samples" if options.text is not None else "drift"
        part = drift(name, samples.rows, "text that the base wrote itself")
        part.tokens.folder = work / "samples-drift"
        part.name = "samples-drift" if name == "samples" else "drift"
        part.measure_name = name
        plan.parts.append(part)
    elif causal:
        if options.text is None:
            plan.not_measured["drift"] = "there is no text: neither a file (--text) nor samples (--generate N)"
        plan.not_measured["distinct-1/2 and length of sampled answers"] = "the models wrote no text (--generate N)"
    if not causal and options.text is None:
        plan.not_measured["drift"] = "an encoder-decoder needs prompts and responses (--text FILE with both columns)"
    data = _training_rows(plan, pair, loaded, options)
    if data is not None:
        plan.parts.append(Noise(tokens("noise", lambda: data.rows, compare=False), lambda: data, options.seed))
    for name in options.bias:
        if not causal:
            plan.not_measured[f"bias.{name}"] = "sentences are scored by causal language models only"
            continue
        assert options.bias_data is not None
        pairs = read_pairs(name, options.bias_data)
        plan.parts.append(Bias(name, pairs, work / f"bias-{name}", options.batch_size, options.seed))


def _classification(plan: Plan, pair: ModelPair, loaded: LoadedModel, options: AuditOptions, work: Path) -> None:
    loaded = dataclasses.replace(loaded, labels=pair.classes)  # the rows' labels are the tuned model's classes
    about: dict[str, Any] = {"batch_size": options.batch_size, "seed": options.seed, "apart": pair.other_classes}
    config = None if pair.saved is None else pair.saved.config
    rows: Rows | None = None
    if options.text is None and config is not None and config.data.eval is not None:
        rows = run_rows(config, loaded, count=options.documents, seed=options.seed, evaluation=True)
    elif options.text is None:
        plan.not_measured["drift and collapse"] = "a classifier needs labelled rows (--text FILE with text and label)"
    else:
        rows = read_rows(
            options.text,
            options.columns,
            loaded,
            tokens=options.tokens,
            count=options.documents,
            seed=options.seed,
            flag="--text",
        )
    if rows is not None:
        labelled = rows
        plan.parts.append(Classifier(work / "drift", lambda: labelled, training=False, **about))
    data = _training_rows(plan, pair, loaded, options)
    if data is not None:
        plan.parts.append(Classifier(work / "noise", lambda: data, training=True, **about))
    for name in options.bias:
        plan.not_measured[f"bias.{name}"] = "sentences are scored by causal language models only"


def _training_rows(plan: Plan, pair: ModelPair, loaded: LoadedModel, options: AuditOptions) -> Rows | None:
    """Return the training rows: those given, else those of the run; None with a reason if there are none."""
    if options.data is not None:
        return read_rows(
            options.data, options.data_columns, loaded, tokens=max(options.tokens, 512), count=options.rows, seed=options.seed,
            flag="--data",
        )  # fmt: skip
    config = None if pair.saved is None else pair.saved.config
    if config is None:
        plan.not_measured["noise"] = "the training data are not known (--data TRAIN.jsonl)"
        return None
    try:
        return run_rows(config, loaded, count=options.rows, seed=options.seed)
    except BALoraError as error:
        plan.not_measured["noise"] = f"the run's training data cannot be read ({error})"
        return None
