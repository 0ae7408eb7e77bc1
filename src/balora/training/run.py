"""`balora train`: one run, from a config to a run directory with the result. The same command resumes an interrupted run."""

import dataclasses
import functools
from collections.abc import Callable, Sized
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
from balora.checkpoints.run_directory import (
    CONFIG,
    RunDirectory,
    metrics_over_all_steps,
    read_record,
    step_and_loss_sum,
)
from balora.config.run_config import RunConfig
from balora.config.training_arguments import describe_large_batch, optimizer_steps
from balora.data.collate import make_collator, shortest_first
from balora.data.examples import Examples
from balora.data.packing import pack_training_rows
from balora.data.perturbations import describe_perturbations
from balora.data.streaming import load_run_examples, streamed
from balora.data.tokenize import tokenize_examples
from balora.data.tokenizer_digest import tokenizer_digest
from balora.deprecation import deprecated_keywords
from balora.errors import BALoraError, Interrupted
from balora.files import write_text
from balora.loading.head import head_classes
from balora.loading.pretrained import load_model, load_target_tokenizer, load_tokenizer, max_positions
from balora.loading.source import ModelSource
from balora.methods import adapt, find_method
from balora.models.packed_attention import check_packed_attention
from balora.teacher.cache import TeacherIdentity, open_cache
from balora.teacher.row_keys import row_key
from balora.training.anchors.anchor_source import check_anchors
from balora.training.arguments import training_arguments
from balora.training.callbacks import EarlyStop, MetricsFile
from balora.training.distributed.peers import Peers
from balora.training.distributed.processes import (
    asked_processes,
    check_shared_directory,
    describe_processes,
    explain,
    ignored_sharding,
    refuse_separate_processes,
)
from balora.training.generative_eval import GenerativeEvalTrainer, generative_metrics_for
from balora.training.item_results import ItemRecorder
from balora.training.metrics import metrics_for
from balora.training.progress import Detail, ProgressBar, RunScreen, next_commands, result_lines
from balora.training.stopping import StopRequest
from balora.training.trainer import BALoraTrainer
from balora.turns import divided_among_processes

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
def run(
    config: RunConfig,
    log: Callable[[str], None] = lambda line: None,
    *,
    detail: Detail = "normal",
    bars: bool | None = False,
    anchor_store: Path | None = None,
) -> RunResult:
    """Train as a config says, or resume the interrupted run in its run directory.

    Args:
        config: Config of the run.
        log: Function that gets lines for the user.
        detail: ``quiet`` calls ``log`` for nothing; ``verbose`` also for every logged step while a bar is shown.
        bars: Whether to show bars on the error output; None: if both outputs are a
            terminal. ``training.disable_tqdm`` hides them.
        anchor_store: Directory of generated anchors that this run shares with others.

    Raises:
        BALoraError: Bad input, or training that cannot continue. Earlier checkpoints stay.
    """
    directory = RunDirectory(config)
    refuse_separate_processes(config.training)
    peers = Peers(directory.record_failure)
    screen = RunScreen(log if peers.rank == 0 else lambda line: None, detail, bars)
    with peers.watched():
        return _run(config, screen, directory, peers, anchor_store)


def _run(
    config: RunConfig, screen: RunScreen, directory: RunDirectory, peers: Peers, anchor_store: Path | None
) -> RunResult:
    """Train as `run` does, while ``peers`` watches the other processes."""
    log = screen.log
    checkpoint = directory.resume_checkpoint()
    resumed = checkpoint is not None
    if resumed:
        log(f"Resuming from {checkpoint}")
    # All input is checked before the run directory is written to.
    trainer, tokenizer, examples = prepare(config, checkpoint, screen)
    trainer.anchor_store = anchor_store
    peers.connect()
    resumed_at = 0
    loss_before: float | None = 0.0
    if checkpoint is not None:
        directory.check_data(examples.digest)
        directory.check_world_size(trainer.accelerator.num_processes)
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
        check_shared_directory(directory.path, checkpoint, CONFIG)
        notices = trainer.objective.notices  # the first batch may add some
        for ignored in ignored_sharding(trainer.args, trainer.accelerator):
            notices.append(ignored)
            log(ignored)
        if resumed and config.training.get("ignore_data_skip"):
            notices.append(IGNORED_DATA_SKIP)
            log(IGNORED_DATA_SKIP)
        if isinstance(trainer.train_dataset, Sized):
            size, processes = len(trainer.train_dataset), trainer.accelerator.num_processes
            if (large := describe_large_batch(size, config.training, processes)) is not None:
                log(large)
        directory.update_record(
            status="running",
            resumed=resumed,
            loss_logged=loss_before is not None,
            provenance=provenance(),
            processes=describe_processes(trainer.accelerator),
            **({} if trainer.anchors is None else {"anchor": trainer.anchors.to_dict()}),
            data=data,  # written before the training, because a resume compares it
            notices=notices,
        )
        log(_summary(config, examples, trainer))
        if examples.perturbations:
            log(describe_perturbations(examples.perturbations))
        is_futile = None if peers.size == 1 else lambda: peers.failed() is not None
        stop = StopRequest(lambda: directory.update_record(status="interrupted"), is_futile)
        try:
            metrics = _train(trainer, config, checkpoint, screen, stop)
            # Saved before the evaluation, which may round the model in place (bf16_full_eval).
            with screen.stage("saving"):
                saved = save_result(trainer, tokenizer, directory.path)
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
            if (known := explain(error)) is not None:
                directory.update_record(status="failed", error=known, notices=notices)
                raise BALoraError(known) from error
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
    if trainer.is_world_process_zero():
        trainable = parameter_counts(trainer.model)["trainable"]
        log("\n".join(result_lines(config, metrics, trainer.state.global_step, saved, trainable)))
        log("\n".join(["Next:", *(f"  {command}" for command in next_commands(config, directory.path))]))
    return RunResult(directory.path, metrics, trainer)


def prepare(
    config: RunConfig, checkpoint: Path | None = None, screen: RunScreen | None = None
) -> tuple[BALoraTrainer, PreTrainedTokenizerBase, Examples]:
    """Load and check all that a run needs before its first step, and write nothing.

    The initial values of a resumed run are read from its checkpoint, without a new decomposition.
    """
    screen = screen if screen is not None else RunScreen(lambda line: None, "quiet")
    stage, stage_log = screen.stage, screen.log
    set_seed(config.seed)  # for a new classification head, which the global generator makes
    source = ModelSource.from_config(config)
    tokenizer, target = load_tokenizer(source), load_target_tokenizer(source)
    with stage("reading the data"):
        examples = load_run_examples(config.data, config.task, config.seed, head=head_classes(source))
    with stage("loading the model"):
        model = load_model(source, examples.num_labels, examples.id2label, tokenizer=tokenizer)
    # After load_model, because arguments for DeepSpeed or FSDP change how models are loaded. They start the process group.
    arguments = training_arguments(config)
    check_anchors(config.anchor, config.task, tokenizer, model.config)
    positions = max_positions(model.config)
    with stage("tokenizing"):
        rows = tokenize_examples(
            examples, tokenizer, config.data, config.task, target_tokenizer=target, max_positions=positions
        )
    collator = make_collator(config.task, tokenizer, model)
    singles: Any = rows.train  # the initial values are computed from examples, whether or not they are packed
    if config.data.packing:
        check_packed_attention(model, min(2, config.training.get("per_device_train_batch_size", 8)))
        rows = pack_training_rows(rows, config.data)
        stage_log(rows.notes[-1])
    steps = optimizer_steps(len(rows.train), config.training, asked_processes())
    if config.data.streaming:
        if asked_processes() > 1:
            raise BALoraError("data.streaming is for one process. Start one, or leave it out.")
        rows = streamed(rows, config, examples.form, tokenizer, target, positions)
    cache = open_cache(config)
    if cache is not None:
        identity = TeacherIdentity.of_run(config, model, tokenizer_digest(tokenizer, target))
        cache.require(identity, [row_key(row) for row in rows.train])
    stored = None if checkpoint is None else ckpt.read_initial_weights(checkpoint).values
    with stage(f"making the initial values of {config.method.name}"), divided_among_processes():
        adapted = adapt(
            model,
            config.method.name,
            **adapter_arguments(config),
            initial=stored,
            total_steps=steps,
            calibration=functools.partial(calibration_rows, singles, collator, config.seed),
            **config.method.options,
        )
    if stored is not None:  # full fine-tuning stores only the values that the pre-trained model does not have
        stored = {name: stored.get(name, p) for name, p in adapted.named_parameters() if p.requires_grad}
    eval_rows = rows.eval
    if eval_rows is not None and config.task in ("classification", "regression"):
        eval_rows = shortest_first(eval_rows)
    generative = generative_metrics_for(config, examples, rows, target or tokenizer)
    metrics: dict[str, Any] = (
        {"generative_metrics": generative} if generative else {"compute_metrics": metrics_for(config.task)}
    )
    trainer = (GenerativeEvalTrainer if generative else BALoraTrainer)(
        model=adapted,
        args=arguments,
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
    values = {name: getattr(method, name) for name in ("rank", "alpha", "dropout", "target_modules", "exclude_modules")}
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    return {**values, "seed": config.seed}


def calibration_rows(rows: Dataset, collator: Callable[..., Any], seed: int, count: int) -> list[dict[str, Tensor]]:
    """Draw ``count`` training rows without replacement, each as a batch of one."""
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    return [collator([rows[number]]) for number in chosen]


def _train(
    trainer: BALoraTrainer, config: RunConfig, checkpoint: Path | None, screen: RunScreen, stop: StopRequest
) -> dict[str, float]:
    """Train and return the metrics; if a stop is requested, save a checkpoint and raise `Interrupted`."""
    for unwanted in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(unwanted)
    if config.early_stopping is not None:
        stopping = config.early_stopping
        trainer.add_callback(EarlyStop(stopping.patience, stopping.min_delta, screen.log))
    progress = screen.callback(trainer, config)
    trainer.add_callback(progress)
    trainer.add_callback(MetricsFile(Path(config.output)))
    if checkpoint is not None:
        trainer.args.eval_on_start = False  # the Trainer would evaluate at every resume, and log it as a step's result
    trainer.stop_request = stop
    try:
        with stop.listening():
            metrics = dict(trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None).metrics)
    finally:
        if isinstance(progress, ProgressBar):
            progress.close()
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
        folder = staging / name
        trainer._save(str(folder))  # in every process, because sharded tensors are gathered from all of them
        if trainer.args.should_save:
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
    examples_named = "packed rows" if config.data.packing else "examples"
    count = f"a stream of {examples_named}"
    if not config.data.streaming:
        count = f"{len(trainer.train_dataset):,} {examples_named}"
    effective = trainer.objective.config  # without terms that are switched off for this model
    weights = {name: getattr(effective, name) for name in ("consistency", "diversity", "spectral", "variance")}
    terms = ", ".join(f"{name} {value:g}" for name, value in weights.items() if value) or "off"
    return (
        f"{find_method(config.method.name).name} on {config.model}: {trainable:,} trainable parameters, "
        f"{count} from {examples.train_source}; regularization: {terms}"
    )
