"""`balora train`: one run, from a config to a run directory with the result. The same command resumes an interrupted run."""

import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from balora.checkpoints import checkpoint as ckpt
from balora.checkpoints.model_card import model_card
from balora.checkpoints.provenance import peak_memory_mib, provenance
from balora.checkpoints.run_directory import RunDirectory, metrics_over_all_steps, read_record, step_and_loss_sum
from balora.config.run_config import RunConfig
from balora.config.training_arguments import optimizer_steps
from balora.data.collate import make_collator, shortest_first
from balora.data.examples import Examples, load_examples
from balora.data.perturbations import describe_perturbations
from balora.data.tokenize import tokenize_examples
from balora.deprecation import deprecated_keywords
from balora.errors import BALoraError, Interrupted
from balora.files import write_text
from balora.loading.head import head_classes
from balora.loading.pretrained import load_model, load_target_tokenizer, load_tokenizer, max_positions
from balora.loading.source import ModelSource
from balora.methods import adapt, find_method
from balora.teacher.cache import TeacherIdentity, open_cache, tokenizer_digest
from balora.teacher.row_keys import row_key
from balora.training.arguments import training_arguments
from balora.training.callbacks import LogLines, MetricsFile, ProgressBar
from balora.training.generative_eval import GenerativeEvalTrainer, generative_metrics_for
from balora.training.item_results import ItemRecorder
from balora.training.metrics import metrics_for
from balora.training.stopping import StopRequest
from balora.training.trainer import BALoraTrainer

IGNORED_DATA_SKIP = (
    "training.ignore_data_skip is on: the resumed run begins its epoch with the first rows again, so it sees some rows twice, and "
    "its result differs from that of an uninterrupted run."
)


@dataclasses.dataclass(frozen=True)
class RunResult:
    """Result of a finished run."""

    folder: Path
    """Run directory."""
    metrics: dict[str, float]
    """Training loss and time; with evaluation rows, their loss and scores. For a resumed run the time is the time since the
    resume, and the loss is missing if the log lacks steps before it."""
    trainer: BALoraTrainer


@deprecated_keywords(settings="config", say="log")
def run(config: RunConfig, log: Callable[[str], None] = lambda line: None) -> RunResult:
    """Train as a config says, or resume the interrupted run in its run directory.

    Args:
        config: Config of the run.
        log: Function that gets lines for the user.

    Raises:
        BALoraError: Bad input, or training that cannot continue. Earlier checkpoints stay.
    """
    directory = RunDirectory(config)
    checkpoint = directory.resume_checkpoint()
    resumed = checkpoint is not None
    if resumed:
        log(f"Resuming from {checkpoint}")
    # All input is checked before the run directory is written to.
    trainer, tokenizer, examples = prepare(config, checkpoint)
    resumed_at = 0
    loss_before: float | None = 0.0
    if checkpoint is not None:
        directory.check_data(examples.digest)
        # Read before the training, which may delete the checkpoint.
        resumed_at, loss_before = step_and_loss_sum(checkpoint, read_record(directory.path) or {})
    data = {
        "train": examples.train_source,
        "eval": examples.eval_source,
        "conditions": examples.perturbations,
        "digest": examples.digest,
        "labels": list(examples.label_names) if examples.label_names else None,
    }
    with directory.lock(checkpoint):
        notices = trainer.objective.notices  # the first batch may add some
        if resumed and config.training.get("ignore_data_skip"):
            notices.append(IGNORED_DATA_SKIP)
            log(IGNORED_DATA_SKIP)
        directory.update_record(
            status="running",
            resumed=resumed,
            loss_logged=loss_before is not None,
            provenance=provenance(),
            **({} if trainer.anchors is None else {"anchor": trainer.anchors.to_dict()}),
            data=data,  # written before the training, because a resume compares it
            notices=notices,
        )
        log(_summary(config, examples, trainer))
        if examples.perturbations:
            log(describe_perturbations(examples.perturbations))
        stop = StopRequest(lambda: directory.update_record(status="interrupted"))
        try:
            metrics = _train(trainer, directory.path, checkpoint, log, stop)
            # Saved before the evaluation, which may round the model in place (bf16_full_eval).
            save_result(trainer, tokenizer, directory.path)
            if trainer.eval_dataset is not None:
                generative = getattr(trainer, "generative_metrics", None)
                recorder = ItemRecorder(trainer, config.task, generative and generative.read)
                metrics |= recorder.evaluate()
                if trainer.args.should_save:
                    recorder.write(directory.path)
            metrics["peak_memory_mib"] = peak_memory_mib()
            if resumed:
                metrics = metrics_over_all_steps(metrics, loss_before, resumed_at, trainer.state.global_step)
        except BALoraError as error:
            directory.update_record(status="failed", error=str(error), notices=notices)
            raise
        except BaseException as error:
            # After a signal another error can follow from it: Ctrl-C also ends the processes that load data.
            if not isinstance(error, KeyboardInterrupt) and stop.signal_number is None:
                raise
            directory.update_record(status="interrupted", notices=notices)
            number = stop.signal_number or getattr(error, "exit_status", 130) - 128
            raise Interrupted(_stopped(trainer, config), number) from error
        if trainer.args.should_save:
            card = model_card(config, metrics, {**provenance(), "data": data, "resumed": resumed})
            write_text(directory.path / "README.md", card)
        directory.update_record(
            status="finished", error=None, metrics=metrics, parameters=parameter_counts(trainer.model), notices=notices
        )
    shown = ("train_loss", "train_runtime", "peak_memory_mib", "eval_", "anchor_")
    log("  ".join(f"{name} {value:.4g}" for name, value in metrics.items() if name.startswith(shown)))
    log(f"Done: {directory.path}")
    return RunResult(directory.path, metrics, trainer)


def prepare(
    config: RunConfig, checkpoint: Path | None = None
) -> tuple[BALoraTrainer, PreTrainedTokenizerBase, Examples]:
    """Load and check all that a run needs before its first step, and write nothing.

    The initial values of a resumed run are read from its checkpoint, without a new decomposition.
    """
    set_seed(config.seed)  # for a new classification head, which the global generator makes
    source = ModelSource.from_config(config)
    tokenizer, target = load_tokenizer(source), load_target_tokenizer(source)
    examples = load_examples(config.data, config.task, config.seed, head=head_classes(source))
    model = load_model(source, examples.num_labels, examples.id2label, tokenizer=tokenizer)
    positions = max_positions(model.config)
    rows = tokenize_examples(
        examples, tokenizer, config.data, config.task, target_tokenizer=target, max_positions=positions
    )
    collator = make_collator(config.task, tokenizer, model)
    cache = open_cache(config)
    if cache is not None:
        identity = TeacherIdentity.of_run(config, model, tokenizer_digest(tokenizer, target))
        cache.require(identity, [row_key(row) for row in rows.train])
    stored = None if checkpoint is None else ckpt.read_initial_weights(checkpoint).values
    adapted = adapt(
        model,
        config.method.name,
        **adapter_arguments(config),
        initial=stored,
        total_steps=optimizer_steps(len(rows.train), config.training, int(os.environ.get("WORLD_SIZE", "1"))),
        calibration=functools.partial(calibration_rows, rows.train, collator, config.seed),
        **config.method.options,
    )
    if stored is not None:  # full fine-tuning stores only the values that the pre-trained model does not have
        stored = {name: stored.get(name, p) for name, p in adapted.named_parameters() if p.requires_grad}
    eval_rows = rows.eval
    if eval_rows is not None and config.task in ("classification", "regression"):
        # A generator's rows stay in their order, because its loss is a mean over batches.
        eval_rows = shortest_first(eval_rows)
    generative = generative_metrics_for(config, examples, rows, target or tokenizer)
    metrics: dict[str, Any] = (
        {"generative_metrics": generative} if generative else {"compute_metrics": metrics_for(config.task)}
    )
    trainer = (GenerativeEvalTrainer if generative else BALoraTrainer)(
        model=adapted,
        # Made after load_model, because arguments for DeepSpeed or FSDP change how models are loaded.
        args=training_arguments(config),
        train_dataset=rows.train,
        eval_dataset=eval_rows,
        data_collator=collator,
        **metrics,
        regularization=config.regularization,
        loss_path=config.loss_path,
        initial=stored,
        teacher_cache=cache or ("auto" if config.teacher_cache == "auto" else "off"),
        teacher_offload=config.teacher_offload,
        anchors=config.anchor,
        **({"processing_class": tokenizer} if config.anchor is not None else {}),
    )
    return trainer, tokenizer, examples


def adapter_arguments(config: RunConfig) -> dict[str, Any]:
    """Return the arguments of `balora.adapt` that all methods have."""
    method = config.method
    targets = method.target_modules if isinstance(method.target_modules, str) else list(method.target_modules)
    values = {name: getattr(method, name) for name in ("rank", "alpha", "dropout")}
    return {**values, "target_modules": targets, "seed": config.seed}


def calibration_rows(rows: Dataset, collator: Callable[..., Any], seed: int, count: int) -> list[dict[str, Tensor]]:
    """Draw ``count`` training rows without replacement, each as a batch of one."""
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    return [collator([rows[number]]) for number in chosen]


def _train(
    trainer: BALoraTrainer, directory: Path, checkpoint: Path | None, log: Callable[[str], None], stop: StopRequest
) -> dict[str, float]:
    """Train and return the metrics; if a stop is requested, save a checkpoint and raise `Interrupted`."""
    for unwanted in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(unwanted)
    trainer.add_callback(LogLines(log) if trainer.args.disable_tqdm else ProgressBar())
    trainer.add_callback(MetricsFile(directory))
    if checkpoint is not None:
        trainer.args.eval_on_start = False  # the Trainer would evaluate at every resume, and log it as a step's result
    trainer.stop_request = stop
    with stop.listening():
        metrics = dict(trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None).metrics)
    if stop.signal_number is not None:  # during or after the last step
        raise Interrupted
    return metrics


def _stopped(trainer: BALoraTrainer, config: RunConfig) -> str:
    """Say how far an interrupted run has come and how to continue it."""
    newest = ckpt.newest_checkpoint(Path(config.output))
    step = f"stopped at step {trainer.state.global_step} of {trainer.state.max_steps}"
    if newest is None:
        return f"{step}, without a checkpoint. Run the same command again to start anew."
    again = "Run the same command again" if config.resume == "auto" else "Run the same command with resume=auto"
    return f"{step}. {again} to resume from {newest}."


def save_result(trainer: BALoraTrainer, tokenizer: PreTrainedTokenizerBase, run: Path) -> Path:
    """Write trained tensors, initial weights and tokenizer to ``adapter/``, or ``model/`` if every weight was trained."""
    name = "model" if ckpt.form_of(trainer.model) == "model" else "adapter"
    with trainer.staged() as staging:
        if trainer.args.should_save:
            folder = staging / name
            trainer._save(str(folder))
            ckpt.write_initial_weights(folder, trainer.origin())
            tokenizer.save_pretrained(folder)
    return run / name


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """Count the values of a model's parameters: all, and the trainable ones."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return {"trainable": sum(n for n, trainable in sizes if trainable), "all": sum(n for n, _ in sizes)}


def _summary(config: RunConfig, examples: Examples, trainer: BALoraTrainer) -> str:
    """Describe a run in one line: method, model, trainable parameters, data and regularization."""
    trainable = parameter_counts(trainer.model)["trainable"]
    effective = trainer.objective.config  # without terms that are switched off for this model
    weights = {name: getattr(effective, name) for name in ("consistency", "diversity", "spectral", "variance")}
    terms = ", ".join(f"{name} {value:g}" for name, value in weights.items() if value) or "off"
    return (
        f"{find_method(config.method.name).name} on {config.model}: {trainable:,} trainable parameters, "
        f"{len(trainer.train_dataset):,} examples from {examples.train_source}; regularization: {terms}"
    )
