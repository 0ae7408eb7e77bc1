"""`balora.export`: write a trained model in a form that needs no balora, and compare it with the trained model.

``lora`` is a plain LoRA on the original pre-trained weights, for peft; ``merged`` is a plain transformers model. Each is
written to a staging directory, loaded through its library, compared on a probe, and only then moved to the output.
"""

import contextlib
import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from balora.checkpoints.model_card import ModelDescription, model_card, read_audit
from balora.checkpoints.run_directory import read_record
from balora.errors import BALoraError, suggest
from balora.exporting import verification
from balora.exporting.base_model import BaseModel, add_unstored_layers
from balora.exporting.rounding import Rounding, dtype_named, round_model
from balora.exporting.serving import write_serving
from balora.exporting.truncation import Cut, truncate
from balora.exporting.weights import Change, change_of, merge_into, write_lora
from balora.files import apply_umask, fsync
from balora.loading.pretrained import auto_class, load_target_tokenizer
from balora.loading.source import Location, ModelSource
from balora.loading.trained import SavedModel, initial_values, load, saved_of, scale_of
from balora.logging_control import quiet
from balora.methods import METHODS, Method
from balora.methods.initial_state import initial_state_of
from balora.methods.layers.peft_lora import lora_layers
from balora.methods.scale import check_scale, scale_notice
from balora.methods.scaling import scale_change, scale_other_tensors
from balora.models.adapted_model import base_model_of
from balora.teacher.pretrained import PretrainedTeacher
from balora.training.steps.train_step import infer_task

logger = logging.getLogger("balora")
Form = Literal["lora", "merged"]
CLASSES = "classes.json"
"""Names of a classifier's classes in the order of the head's rows, beside a LoRA: peft's config has no place for them."""
TARGET_TOKENIZER = "target_tokenizer"
"""Subdirectory of the tokenizer of the responses, if it is not the tokenizer of the inputs."""


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """Files of an export, and their comparison with the trained model."""

    to: Form
    output: Path
    files: tuple[Path, ...]
    rank: int | None
    """Rank of the LoRA; None for a merged model."""
    agreement: verification.Agreement | None
    """Comparison with the trained model; None without ``check``."""
    note: str | None = None
    """Note on how the base of a LoRA must be loaded."""
    scale: float = 1.0
    """a in W + a·ΔW."""
    cut: Cut | None = None
    """Error of a lower rank, if one was asked for."""
    rounding: Rounding | None = None
    """Error of another dtype, if one was asked for."""

    @property
    def largest_difference(self) -> float | None:
        """Largest absolute difference of a logit from the trained model's."""
        return None if self.agreement is None else self.agreement.largest_difference

    def describe(self) -> str:
        """Return one sentence for the user."""
        what = f"a LoRA of rank {self.rank}" if self.to == "lora" else "a merged model"
        compared = "not compared with the trained model" if self.agreement is None else str(self.agreement)
        scaled = f" with {self.scale:g} of the change" if self.scale != 1 else ""
        notes = (
            note
            for note in (
                self.cut.describe() if self.cut else None,
                self.rounding.describe() if self.rounding else None,
                self.note,
                scale_notice(self.scale),
            )
            if note
        )
        return " ".join([f"Wrote {what}{scaled} to {self.output}: {compared}.", *notes])

    __str__ = describe


@dataclasses.dataclass
class _Trained:
    """The trained model to export, and everything known about it."""

    model: nn.Module | None
    """The trained model; set to None before the pre-trained model is loaded, to free memory."""
    method: Method
    initial: Mapping[str, Tensor] | None
    """Initial values of the adapter, if the method moved weights into it and the values are known."""
    base: BaseModel
    task: str
    tokenizer: PreTrainedTokenizerBase | None
    saved: SavedModel | None
    scale: float = 1.0
    """a in W + a·ΔW, of the model as it is exported."""
    unscaled: float = 1.0
    """Part of ``scale`` that ``model`` does not have yet: that of an adapter on a quantized residual."""
    vocabulary: int | None = None
    """Number of tokens, if the embeddings were resized."""

    @property
    def only_residual(self) -> bool:
        """True if the pre-trained weights are unknown: the method moved a part of them into the adapter."""
        return self.method.residual_base and self.initial is None

    def keeps_frozen(self, to: Form) -> bool:
        """Return whether the export uses the frozen weights: the pre-trained ones are unknown, or they are quantized."""
        return self.only_residual or (to == "merged" and self.base.bits is not None)


def export(
    run_or_model: str | Path | nn.Module,
    to: str = "lora",
    *,
    output: str | Path,
    tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
    check: bool = True,
    initial: Mapping[str, Tensor] | PretrainedTeacher | None = None,
    base: str | Path | None = None,
    scale: float = 1.0,
    rank: int | None = None,
    dtype: str | None = None,
) -> ExportReport:
    """Write a trained model in plain peft's or plain transformers' form.

    Args:
        run_or_model: A run directory (or its ``adapter/`` or ``checkpoint-N/``), or a model made by `balora.adapt`.
        to: ``lora``: a LoRA on the original pre-trained weights. Its rank is r; if the method moved weights into the
            adapter, 2r, and the LoRA is exactly the difference. ``merged``: the whole model, summed in float32 and
            rounded once.
        output: A directory that does not exist yet, or is empty.
        tokenizer: Tokenizer to write beside the weights; default the run's.
        check: Whether to load the result and compare it with the trained model.
        initial: For a model in memory: the initial values of the adapter, or the `PretrainedTeacher` that has them.
            ``lora`` needs them if the method moved weights into the adapter.
        base: Hub id or directory of the pre-trained model, if it has moved since the training.
        scale: a in W + a·ΔW: how much of the change to export. Below 1 the model forgets less and has learnt less. A model in
            memory is scaled in place.
        rank: Cut the LoRA to a lower rank by SVD, for servers with a limit. The result then differs from the trained model, by
            the error that the report has.
        dtype: ``float32``, ``bfloat16`` or ``float16``: dtype of the tensors that are written, rounded once; default: that in
            which the model was trained, and for a LoRA float32 or wider. The report has the error. A value that the dtype cannot
            hold is refused.

    Returns:
        The files and the largest logit difference.

    Raises:
        BALoraError: The method has no such form, the output directory is not empty, writing failed, or the result
            does not agree with the trained model. Nothing is left in the output directory then.

    Example:
        >>> import balora, tempfile, transformers
        >>> config = transformers.LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        ...     num_attention_heads=2)
        >>> model = balora.adapt(transformers.LlamaForCausalLM(config), rank=4)
        >>> teacher = balora.PretrainedTeacher(model)
        >>> report = balora.export(model, to="lora", output=tempfile.mkdtemp(), initial=teacher)
        >>> report.rank, report.largest_difference < 1e-4
        (8, True)
    """
    if to not in ("lora", "merged"):
        raise BALoraError(f"to is lora or merged, not {to!r}.{suggest(str(to), ['lora', 'merged'])}")
    form: Form = "lora" if to == "lora" else "merged"
    scale = check_scale(scale)
    output = Path(output)
    if rank is not None and form != "lora":
        raise BALoraError("A rank is for --to lora; a merged model has none.")
    target = None if dtype is None else dtype_named(dtype)
    if output.is_symlink():
        raise BALoraError(
            f"{output} is a symbolic link, and an export does not write through links. Name the folder that is meant."
        )
    if output.exists() and not output.is_dir():
        raise BALoraError(f"{output} is a file. Name a folder for the export.")
    if output.is_dir() and any(output.iterdir()):
        raise BALoraError(f"{output} is not empty, and nothing is overwritten. Name another folder, or empty it first.")
    with quiet():
        if isinstance(run_or_model, str | Path):
            trained = _from_run(run_or_model, base)
        else:
            trained = _from_model(run_or_model, initial, base)
        _check_possible(trained, form)
        if tokenizer is not None:
            is_name = isinstance(tokenizer, str | Path)
            trained.tokenizer = AutoTokenizer.from_pretrained(tokenizer) if is_name else tokenizer
        if scale != 1:
            _scale(trained, form, scale, initial, base)
        report = _export(trained, form, output, check, rank, target)
    if report.note and isinstance(run_or_model, nn.Module):  # the command prints the report
        logger.warning("%s: %s", output, report.note)
    return report


def _from_run(path: str | Path, base: str | Path | None) -> _Trained:
    model = load(path, base=base)
    saved = saved_of(model)
    assert saved is not None
    source = saved.source(base) if saved.config is not None or base is not None else None
    initial = saved.initial.values if saved.method.residual_base else None
    pretrained = BaseModel.under(model, source)
    tokenizer = saved.tokenizer() or saved.base_tokenizer()
    return _Trained(model, saved.method, initial, pretrained, infer_task(model), tokenizer, saved)


def _from_model(
    model: nn.Module, initial: Mapping[str, Tensor] | PretrainedTeacher | None, base: str | Path | None
) -> _Trained:
    state, saved = initial_state_of(model), saved_of(model)
    method = METHODS[state.method] if state else saved.method if saved else None
    if method is None or not isinstance(model, PeftModel | PreTrainedModel):
        raise BALoraError(
            f"This {type(model).__name__} was not made by balora.adapt or balora.load. Export peft's own models with "
            "save_pretrained or merge_and_unload. To export a run, give its folder."
        )
    inactive = next((name for name, layer in lora_layers(model) if layer.merged or layer.disable_adapters), None)
    if inactive is not None:
        raise BALoraError(f"The adapter of {inactive} is merged or switched off. Unmerge it, or switch it on, first.")
    values = None
    if method.residual_base:
        initial = saved.initial.values if initial is None and saved is not None else initial
        if initial is not None and not isinstance(initial, PretrainedTeacher):
            initial = PretrainedTeacher(model, initial)  # checks that these are the initial values of this adapter
        values = None if initial is None else initial.initial
    source = None if base is None else ModelSource(model=Location(str(base)))
    plain = dataclasses.replace(BaseModel.under(model, source), adapted=model)
    tokenizer = saved.tokenizer() if saved else None
    return _Trained(model, method, values, plain, infer_task(model), tokenizer, saved, scale_of(model))


def _scale(
    trained: _Trained,
    to: Form,
    scale: float,
    initial: Mapping[str, Tensor] | PretrainedTeacher | None,
    base: str | Path | None,
) -> None:
    """Scale the change of the trained model in place."""
    check_scale(scale, trained.method)
    assert trained.model is not None
    values = initial.initial if isinstance(initial, PretrainedTeacher) else initial or trained.initial
    if values is None and trained.saved is not None:
        values = initial_values(trained.saved, base)
    if values is None and trained.method.residual_base:
        raise BALoraError(
            f"Method {trained.method.name} moved part of the pre-trained weights into the adapter, so scaling its change needs "
            "the initial values: pass initial= (a PretrainedTeacher made before training), or give the run's folder."
        )
    # The export of a quantized residual as a LoRA scales the frozen weights after the comparison with what was quantized.
    later = to == "lora" and trained.base.bits is not None and trained.method.residual_base
    residual = trained.method.residual_base
    trained.unscaled = scale if later else 1.0
    if not later:
        scale_change(trained.model, scale, values or {}, residual_base=residual)
    trained.scale = scale * trained.scale


def _check_possible(trained: _Trained, to: Form) -> None:
    """Refuse a form that the method's result cannot have."""
    method = trained.method
    if to == "lora" and not method.low_rank:
        way_out = "Export it with --to merged." if method.mergeable else "balora.load gives the trained model."
        raise BALoraError(f"Method {method.name} trains {method.trains}, so the change is no LoRA. {way_out}")
    if to == "merged" and not method.mergeable:
        raise BALoraError(
            f"Method {method.name} adds layers with an activation between them, which no weight of the pre-trained model can "
            "hold, so it cannot be merged. balora.load gives the trained model."
        )
    if to == "lora" and trained.only_residual:
        raise BALoraError(
            f"Method {method.name} moved part of the pre-trained weights into the adapter, so a LoRA on the original ones "
            "needs the initial values: pass initial= (a PretrainedTeacher made before training, or the contents of the "
            "run's initial.safetensors), give the run's folder in place of the model, or export with to='merged'."
        )


def _export(
    trained: _Trained, to: Form, output: Path, check: bool, lower_rank: int | None, target: torch.dtype | None
) -> ExportReport:
    model = trained.model
    assert model is not None
    dtype = verification.narrowest_dtype(model)
    if target is not None:
        dtype = max(dtype, target, key=lambda each: torch.finfo(each).eps)
    probe = verification.make_probe(model, trained.tokenizer) if check else []
    expected, note = verification.probe_outputs(model, probe), None
    bits = trained.base.bits if to == "lora" else None
    if bits is not None:
        note = f"Load the base in {bits} bits, as it was trained on; the README there shows how."
        if trained.initial is not None:
            base = trained.base.load(trained.initial)
            expected, note = verification.quantized_lora_outputs(
                model, base, trained.initial, probe, expected, trained.unscaled
            )
            del base
    if trained.unscaled != 1:
        scale_other_tensors(model, trained.unscaled, trained.initial or {})
    change = _change(trained, to) if trained.method.low_rank else None
    if change is not None and trained.unscaled != 1:
        change = change.scaled(trained.unscaled)
    cut = None
    if lower_rank is not None and change is not None:
        change, cut = truncate(change, lower_rank)
    bits_note = note
    if to == "lora" and trained.vocabulary:
        resize = (
            f"The vocabulary was resized: call resize_token_embeddings({trained.vocabulary}) on the base before peft loads the "
            "LoRA, or peft reports a size mismatch."
        )
        note = f"{note} {resize}" if note else resize
    run_rank = getattr(getattr(model, "peft_config", {}).get("default"), "r", None)
    rounding = None
    with _staged(output) as staging:
        if change is None:
            rounding = round_model(model, target) if target is not None else None
            model.save_pretrained(staging)  # type: ignore[operator]
        trained.model = model = None
        if change is not None:
            rounding = _write(trained, change, to, staging, target)
        agreement = None
        if check:
            # Loaded as any user of peft or transformers loads it.
            if to == "lora":
                exported = PeftModel.from_pretrained(trained.base.load(trained.initial), staging)
            else:
                exported = trained.base.model_class.from_pretrained(staging).to(trained.base.device)
            agreement = verification.compare(expected, verification.probe_outputs(exported, probe), dtype)
            if not agreement.holds and cut is None:
                where = f" at {trained.base.address}" if trained.base.address else ""
                narrow = f"The cause may also be --dtype {rounding.dtype}; leave it out to see." if rounding else ""
                raise BALoraError(
                    f"The exported {'LoRA' if to == 'lora' else 'model'} does not agree with the trained model and was not "
                    f"kept: {agreement}. Check that the pre-trained model{where} is the one that was trained, or name "
                    f"another with base=. {narrow}".rstrip()
                )
        rank = change.config.r if change is not None and to == "lora" else None
        report = ExportReport(to, output, (), rank, agreement, note, trained.scale, cut, rounding)
        _write_tokenizers(trained, staging)
        if to == "lora" and trained.task == "classification":
            names = [trained.base.config.id2label[row] for row in range(trained.base.config.num_labels)]
            (staging / CLASSES).write_text(json.dumps(names, ensure_ascii=False) + "\n", encoding="utf-8")
        (staging / "README.md").write_text(_card(trained, report, bits_note), encoding="utf-8")
        if trained.task == "generation":
            moved = trained.method.residual_base
            write_serving(staging, trained.tokenizer, run_rank=run_rank, moved=moved, base_note=note)
    return dataclasses.replace(report, files=tuple(sorted(path for path in output.rglob("*") if path.is_file())))


@contextlib.contextmanager
def _staged(output: Path) -> Iterator[Path]:
    """Provide a directory beside the output, and rename it to the output if the block succeeds."""
    staging = output.absolute().with_name(f".{output.absolute().name}.exporting")
    if staging.is_symlink():  # somebody else's: nothing is written to where it leads
        staging.unlink()
    shutil.rmtree(staging, ignore_errors=True)  # left by an export that was killed
    try:
        staging.mkdir(parents=True)
        yield staging
        apply_umask(*staging.rglob("*"))
        fsync(*staging.rglob("*"), staging)
        os.replace(staging, output)
    except (OSError, SafetensorError) as error:
        raise BALoraError(f"Writing to {output} failed: {error}. Nothing was left there.") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _change(trained: _Trained, to: Form) -> Change:
    assert isinstance(trained.model, PeftModel)
    if trained.keeps_frozen(to):
        return change_of(trained.model)
    change = change_of(trained.model, trained.initial)
    random, resized = trained.base.unstored_parameters(trained.model)
    if resized:
        trained.vocabulary = len(base_model_of(trained.model).get_input_embeddings().weight)
    return add_unstored_layers(change, trained.model, random, resized)


def _write(trained: _Trained, change: Change, to: Form, staging: Path, dtype: torch.dtype | None) -> Rounding | None:
    base = trained.base
    if to == "lora":
        return write_lora(change, staging, base.address, base.source.revision if base.source else None, dtype)
    # Frozen weights plus the adapter, or pre-trained weights plus the change: both sums are the trained model.
    merged = base.load(trained.initial, keep_frozen=trained.keeps_frozen(to))
    if dtype is None:
        merge_into(merged, change)
        rounding = None
    else:
        merged = merged.float()  # the sum is rounded once, to the dtype that is asked for
        merge_into(merged, change)
        rounding = round_model(merged, dtype)
    merged.save_pretrained(staging)  # type: ignore[operator]
    return rounding


def _write_tokenizers(trained: _Trained, staging: Path) -> None:
    if trained.tokenizer is not None:
        trained.tokenizer.save_pretrained(staging)
    config = trained.saved.config if trained.saved else None
    target = load_target_tokenizer(ModelSource.from_config(config)) if config else None
    if target is not None:
        target.save_pretrained(staging / TARGET_TOKENIZER)


def _card(trained: _Trained, report: ExportReport, bits_note: str | None) -> str:
    saved, base = trained.saved, trained.base
    config = saved.config if saved else None
    record = (read_record(saved.run) if saved and saved.run else None) or {}
    provenance = {**record.get("provenance", {}), "data": record.get("data"), "resumed": record.get("resumed")}
    names = base.config.id2label
    description = ModelDescription(
        base=config.model if config else base.address,
        task=trained.task,
        method=trained.method.name,
        labels=[names[number] for number in range(len(names))] if trained.task == "classification" else None,
        rank=report.rank,
        comparison=None if report.agreement is None else str(report.agreement),
        quantization_note=bits_note,
        quantization=base.quantization if report.to == "lora" else None,
        scale=report.scale,
        auto_class=auto_class(trained.task, base.config).__name__,
        vocabulary=trained.vocabulary,
        first_token=base.generation.forced_bos_token_id if base.generation and trained.task == "seq2seq" else None,
    )
    # A scaled change is another model than the one that was audited.
    audit = read_audit(saved.folder, saved.run) if saved and report.scale == 1 else None
    metrics = record.get("metrics", {})
    return model_card(config, metrics, provenance, form=report.to, description=description, audit=audit)
