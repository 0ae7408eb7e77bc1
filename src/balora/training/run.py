"""`balora train`: one run, from settings to a folder that holds the result. Run again, it resumes; finished, it stays."""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib.util
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from balora.checkpoints import checkpoint as ckpt
from balora.checkpoints.model_card import model_card
from balora.checkpoints.provenance import peak_memory_mib, provenance
from balora.checkpoints.resume import loss_before, of_whole_run, step_of
from balora.checkpoints.run_directory import RunDirectory, read_record
from balora.config.run_config import RunConfig
from balora.config.steps import optimizer_steps
from balora.data import Examples, describe_conditions, load_examples, make_collator, tokenize_examples
from balora.data.by_length import shortest_first
from balora.errors import BALoraError, raise_all, suggest
from balora.files import write_text
from balora.loading.pretrained import load_model, load_target_tokenizer, load_tokenizer, max_positions
from balora.methods import adapt, find_method
from balora.teacher.cache import open_cache_for_run, tokenizer_digest
from balora.training.callbacks import LogLines, MetricsFile, ProgressBar
from balora.training.generative_eval import GenerativeEvalTrainer, generative_metrics_for
from balora.training.metrics import SCORES, metrics_for
from balora.training.trainer import BALoraTrainer

logger = logging.getLogger("balora")
DEFAULTS = {"logging_steps": 10, "report_to": ["tensorboard"], "weight_decay": 0.0}
"""Where balora's defaults are not transformers'. The paper uses no weight decay (section 3.1)."""


@dataclasses.dataclass(frozen=True)
class RunResult:
    """A finished run."""

    folder: Path
    metrics: dict[str, float]
    """Training loss and time; with evaluation rows, their loss and scores. Of a resumed run the time is that since the resume,
    and there is no loss where the log does not have every step before."""
    trainer: BALoraTrainer


def run(settings: RunConfig, say: Callable[[str], None] = lambda line: None) -> RunResult:
    """Train as the settings say, or go on where an interrupted run stopped.

    Args:
        settings: Checked settings.
        say: Takes lines for the user.

    Raises:
        BALoraError: Bad input, or training that cannot go on; what was saved before stays.
    """
    folder = RunDirectory(settings)
    resume = folder.resume_point()
    if resume is not None:
        say(f"Resuming from {resume}")
    # Everything that bad input can break comes before the folder is touched.
    trainer, tokenizer, examples = prepare(settings, resume)
    if resume is not None:
        folder.check_data(examples.digest)
    # Read now: the checkpoint may be rotated away before the end.
    before, at = (0.0, 0) if resume is None else (loss_before(resume, read_record(folder.path) or {}), step_of(resume))
    data = _about(examples)
    with folder.claimed():
        notices = trainer.objective.notices  # more may come with the first batch
        # The data from the start: a resume is held to them.
        folder.record(
            status="running",
            resumed=resume is not None,
            loss_logged=before is not None,
            provenance=provenance(),
            data=data,
            notices=notices,
        )
        say(_summary(settings, examples, trainer))
        if examples.conditions:
            say(describe_conditions(examples.conditions))
        try:
            metrics = _train(trainer, folder, resume, say)
            if resume is not None:
                metrics = of_whole_run(metrics, before, at, trainer.state.global_step)
            save_result(trainer, tokenizer, folder.path)
        except BALoraError as error:
            folder.record(status="failed", error=str(error), notices=notices)
            raise
        if trainer.args.should_save:
            about = {**provenance(), "data": data, "resumed": resume is not None}
            write_text(folder.path / "README.md", model_card(settings, metrics, about))
        folder.record(
            status="finished",
            error=None,
            metrics=metrics,
            parameters=parameter_counts(trainer.model),
            notices=notices,
        )
    say(
        "  ".join(
            f"{name} {value:.4g}" for name, value in metrics.items() if name in _SHOWN or name.startswith("eval_")
        )
    )
    say(f"Done: {folder.path}")
    return RunResult(folder.path, metrics, trainer)


def _about(examples: Examples) -> dict[str, Any]:
    """What the record and the card say of the data."""
    return {
        "train": examples.train_source,
        "eval": examples.eval_source,
        "conditions": examples.conditions,
        "digest": examples.digest,
        "labels": list(examples.label_names) if examples.label_names else None,
    }


_SHOWN = ("train_loss", "train_runtime", "peak_memory_mib")


def prepare(settings: RunConfig, resume: Path | None = None) -> tuple[BALoraTrainer, PreTrainedTokenizerBase, Examples]:
    """Load and check everything a run needs, up to its first step. Writes nothing.

    Args:
        settings: Checked settings.
        resume: A whole checkpoint whose start is taken over, its decomposition not done again.

    Raises:
        BALoraError: Bad input.
    """
    set_seed(settings.seed)  # a new classification head is drawn from the global generator
    tokenizer = load_tokenizer(settings)
    examples = load_examples(settings.data, settings.task, settings.seed)
    model = load_model(settings, examples.num_labels, examples.id2label, tokenizer=tokenizer)
    target_tokenizer = load_target_tokenizer(settings)
    rows = tokenize_examples(
        examples,
        tokenizer,
        settings.data,
        settings.task,
        target_tokenizer=target_tokenizer,
        max_positions=max_positions(model.config),
    )
    collator = make_collator(settings.task, tokenizer, model)
    initial = None if resume is None else ckpt.read_origin(resume).initial
    tokenizers = "" if settings.teacher_cache in ("auto", "off") else tokenizer_digest(tokenizer, target_tokenizer)
    cache = open_cache_for_run(settings, model, tokenizers, rows.train)
    adapted = adapt(
        model,
        settings.method.name,
        rank=settings.method.rank,
        alpha=settings.method.alpha,
        dropout=settings.method.dropout,
        target_modules=targets_of(settings),
        seed=settings.seed,
        initial=initial,
        total_steps=optimizer_steps(len(rows.train), settings.training, int(os.environ.get("WORLD_SIZE", "1"))),
        calibration=functools.partial(some_rows, rows.train, collator, settings.seed),
        **settings.method.adapt_options(),
    )
    metrics = generative_metrics_for(settings, examples, rows, target_tokenizer or tokenizer)
    scored: dict[str, Any] = (
        {"generative_metrics": metrics} if metrics else {"compute_metrics": metrics_for(settings.task)}
    )
    trainer = (GenerativeEvalTrainer if metrics else BALoraTrainer)(
        model=adapted,
        args=training_arguments(settings),
        train_dataset=rows.train,
        eval_dataset=_for_evaluation(rows.eval, settings.task),
        data_collator=collator,
        **scored,
        regularization=settings.regularization,
        loss_path=settings.loss_path,
        initial=None if initial is None else _complete(adapted, initial),
        teacher_cache=cache or ("auto" if settings.teacher_cache == "auto" else "off"),
        teacher_offload=settings.teacher_offload,
    )
    return trainer, tokenizer, examples


def _for_evaluation(rows: Dataset | None, task: str) -> Dataset | None:
    """A classifier's rows by length: its scores know no order. A generator's loss does, as the Trainer averages batches."""
    return shortest_first(rows) if rows is not None and task in ("classification", "regression") else rows


def _train(
    trainer: BALoraTrainer, folder: RunDirectory, resume: Path | None, say: Callable[[str], None]
) -> dict[str, float]:
    for unwanted in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(unwanted)
    trainer.add_callback(LogLines(say) if trainer.args.disable_tqdm else ProgressBar())
    trainer.add_callback(MetricsFile(folder.path))
    metrics = dict(trainer.train(resume_from_checkpoint=str(resume) if resume else None).metrics)
    if trainer.eval_dataset is not None:
        metrics |= trainer.evaluate()
    return {**metrics, "peak_memory_mib": peak_memory_mib()}


def some_rows(rows: Dataset, collator: Callable[..., Any], seed: int, count: int) -> list[dict[str, Tensor]]:
    """``count`` rows of the training data, drawn without replacement, each a batch of its own."""
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    return [collator([rows[number]]) for number in chosen]


def training_arguments(settings: RunConfig) -> TrainingArguments:
    """The transformers arguments of a run: what the config says, over balora's defaults.

    Raises:
        BALoraError: transformers refuses a combination of values (its reason is given), or something is asked for that is
            not there.
    """
    fixed = {
        "output_dir": settings.output,
        "seed": settings.seed,
        "remove_unused_columns": False,
        "label_names": ["labels"],
    }
    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    # Copied: transformers writes into what it is given (fsdp_config), and a run's settings must stay what they were.
    values = {**DEFAULTS, **copy.deepcopy(settings.training), **{k: v for k, v in fixed.items() if k in known}}
    try:
        arguments = TrainingArguments(**values)
    except (ValueError, ImportError, RuntimeError) as error:
        raise BALoraError(f"training cannot be set up so: {error}") from error
    raise_all(_unmet(arguments, settings), "The training section cannot be used")
    return arguments


def _unmet(arguments: TrainingArguments, settings: RunConfig) -> list[str]:
    """What the Trainer would miss only once the model is loaded."""
    problems = []
    if arguments.eval_strategy != "no" and settings.data.eval is None:
        problems.append(
            f"training.eval_strategy is {arguments.eval_strategy.value}, and there are no rows to evaluate on. Name them in "
            "data.eval (0.05 is a share of the training rows), or leave eval_strategy out."
        )
    scores, best = _scores(settings), arguments.metric_for_best_model
    if best is not None and best.removeprefix("eval_") not in scores:
        problems.append(
            f"training.metric_for_best_model is {best}, which no evaluation here gives.{suggest(best, scores)} There are "
            f"{', '.join(scores)}."
        )
    problems += [
        f"training.report_to: {name} needs a package that is not installed: pip install 'balora[{name}]'."
        for name in ("wandb", "trackio")
        if name in (arguments.report_to or ()) and importlib.util.find_spec(name) is None
    ]
    return problems


def _scores(settings: RunConfig) -> tuple[str, ...]:
    """Names of what an evaluation during training gives."""
    if settings.task == "seq2seq" and settings.data.form != "pair":  # classes or scores in words
        return ("loss", *SCORES["classification"], *SCORES["regression"], "unreadable")
    return ("loss", *SCORES.get(settings.task, ()))


def save_result(trainer: BALoraTrainer, tokenizer: PreTrainedTokenizerBase, run: Path) -> Path:
    """Write the trained tensors, their origin and the tokenizer into the run's folder, whole or not at all.

    Returns:
        ``adapter/``, or ``model/`` when every weight was trained.
    """
    name = "model" if ckpt.form_of(trainer.model) == "model" else "adapter"
    with trainer.staged() as staging:
        if trainer.args.should_save:
            folder = staging / name
            trainer._save(str(folder))
            ckpt.write_origin(folder, trainer.origin())
            tokenizer.save_pretrained(folder)
    return run / name


def _complete(model: Any, stored: dict[str, Any]) -> dict[str, Any]:
    """All initial values of a freshly restarted model: the stored ones, and those that came with the pre-trained weights."""
    return {name: stored.get(name, p) for name, p in model.named_parameters() if p.requires_grad}


def targets_of(settings: RunConfig) -> str | list[str]:
    """The target modules as `balora.adapt` takes them."""
    targets = settings.method.target_modules
    return targets if isinstance(targets, str) else list(targets)


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """Numbers of values in a model: all, and those that learn."""
    parameters = list(model.parameters())
    return {
        "trainable": sum(p.numel() for p in parameters if p.requires_grad),
        "all": sum(p.numel() for p in parameters),
    }


def _summary(settings: RunConfig, examples: Examples, trainer: BALoraTrainer) -> str:
    trainable = parameter_counts(trainer.model)["trainable"]
    effective = trainer.objective.config  # without the terms that are switched off here
    weights = {name: getattr(effective, name) for name in ("consistency", "diversity", "spectral", "variance")}
    terms = ", ".join(f"{name} {value:g}" for name, value in weights.items() if value) or "off"
    return (
        f"{find_method(settings.method.name).name} on {settings.model}: {trainable:,} trainable parameters, "
        f"{len(trainer.train_dataset):,} examples from {examples.train_source}; regularization: {terms}"
    )
