"""`balora.export`: a trained model in a form that needs no balora, compared with the trained model before it is done.

``lora`` is a plain LoRA on the original pre-trained weights, for peft; ``merged`` a plain transformers model. Either is
written to the side, loaded back through those libraries, compared on real tokens, and only then renamed into place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from balora.checkpoints.model_card import Subject, model_card
from balora.checkpoints.run_directory import read_record
from balora.errors import BALoraError, suggest
from balora.exporting.base_model import PlainBase, add_drawn
from balora.exporting.output_folder import refuse_occupied, to_the_side
from balora.exporting.quantized import in_few_bits, rounded_base
from balora.exporting.verification import Agreement, compare, make_probe, narrowest_dtype, probe_outputs
from balora.exporting.weights import Change, change_of, merge_into, write_lora
from balora.loading.pretrained import load_target_tokenizer
from balora.loading.trained import SavedModel, load, saved_of
from balora.logging_control import quiet
from balora.methods import METHODS, Method
from balora.methods.initial_state import initial_state_of
from balora.methods.layers.peft_lora import lora_layers
from balora.teacher.pretrained import PretrainedTeacher
from balora.training.train_step import infer_task

Form = Literal["lora", "merged"]
TARGET_TOKENIZER = "target_tokenizer"
"""Subfolder for the tokenizer of the responses, where it is another one."""


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """What was written, and how it compares with the trained model."""

    to: Form
    output: Path
    files: tuple[Path, ...]
    rank: int | None
    """Of the LoRA; None for a merged model."""
    agreement: Agreement | None
    """None where the check was switched off."""
    note: str | None = None
    """What has to be known of a model that was trained in 4 or 8 bits."""

    @property
    def largest_difference(self) -> float | None:
        """Largest absolute logit difference to the trained model."""
        return None if self.agreement is None else self.agreement.largest_difference

    def describe(self) -> str:
        """One sentence for people."""
        what = f"a LoRA of rank {self.rank}" if self.to == "lora" else "a merged model"
        compared = "not compared with the trained model" if self.agreement is None else str(self.agreement)
        return f"Wrote {what} to {self.output}: {compared}." + (f" {self.note}" if self.note else "")

    def __str__(self) -> str:
        return self.describe()


@dataclasses.dataclass
class _Source:
    """What is exported."""

    model: nn.Module | None
    """The trained model; given up before the pre-trained one is loaded, where nobody else holds it."""
    method: Method
    initial: Mapping[str, Tensor] | None
    """The adapter's initial values where the method moved the weights and they are known."""
    base: PlainBase
    task: str
    tokenizer: PreTrainedTokenizerBase | None
    saved: SavedModel | None
    bits: int | None = None
    """Of the frozen weights the model was trained on."""

    @property
    def residual(self) -> bool:
        """Whether all that is known of the pre-trained weights is what the start left of them."""
        return self.method.shifts_base and self.initial is None

    def as_is(self, to: Form) -> bool:
        """Whether the frozen weights are taken as they stand: nothing else is known, or they were trained on in few bits."""
        return self.residual or (to == "merged" and self.bits is not None)


def export(
    run_or_model: str | Path | nn.Module,
    to: str = "lora",
    *,
    output: str | Path,
    tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
    check: bool = True,
    initial: Mapping[str, Tensor] | PretrainedTeacher | None = None,
    base: str | Path | None = None,
) -> ExportReport:
    """Write a trained model in plain peft's or plain transformers' form.

    Args:
        run_or_model: A run's folder (or its ``adapter/`` or ``checkpoint-N/``), or a model that `balora.adapt` made.
        to: ``lora``: a LoRA on the original pre-trained weights; of rank 2r and exactly the difference to them where
            the method moved them, else of rank r. ``merged``: the whole model, summed in float32 and rounded once.
        output: A folder that does not exist yet, or is empty.
        tokenizer: To be written beside it; default the run's.
        check: Whether to load the result back and compare it with the trained model.
        initial: For a model in memory: the adapter's initial values, or the `PretrainedTeacher` that keeps them.
            ``lora`` needs them where the method moved the pre-trained weights.
        base: Hub id or folder of the pre-trained model, where it is not (or no longer) where the run or model says.

    Returns:
        What was written and the largest logit difference.

    Raises:
        BALoraError: The method has no such form, the output folder is not empty, writing failed, or what was written
            does not agree with the trained model. Nothing is left in the output folder then.

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
    output = Path(output)
    refuse_occupied(output)
    with quiet():
        if isinstance(run_or_model, str | Path):
            source = _from_run(run_or_model, base)
        else:
            source = _from_model(run_or_model, initial, base)
        _refuse_impossible(source, form)
        if tokenizer is not None:
            named = isinstance(tokenizer, str | Path)
            source.tokenizer = AutoTokenizer.from_pretrained(tokenizer) if named else tokenizer
        return _export(source, form, output, check)


def _from_run(path: str | Path, base: str | Path | None) -> _Source:
    model = load(path, base=base)
    saved = saved_of(model)
    assert saved is not None
    settings = saved.settings
    plain = PlainBase.under(
        model,
        str(base) if base is not None else settings.model if settings else None,
        revision=settings.revision if settings and base is None else None,
        allow_pickle=settings is not None and settings.allow_pickle,
    )
    initial = saved.origin.initial if saved.method.shifts_base else None
    plain, bits = rounded_base(plain, model)
    return _Source(model, saved.method, initial, plain, infer_task(model), saved.tokenizer(), saved, bits)


def _from_model(
    model: nn.Module, initial: Mapping[str, Tensor] | PretrainedTeacher | None, base: str | Path | None
) -> _Source:
    start, saved = initial_state_of(model), saved_of(model)
    method = METHODS[start.method] if start else saved.method if saved else None
    if method is None or not isinstance(model, PeftModel | PreTrainedModel):
        raise BALoraError(
            f"This {type(model).__name__} was not made by balora.adapt or balora.load. peft's own models are exported "
            "with save_pretrained or merge_and_unload; of a run, give the folder."
        )
    touched = next((name for name, layer in lora_layers(model) if layer.merged or layer.disable_adapters), None)
    if touched is not None:
        raise BALoraError(f"The adapter of {touched} is merged or switched off. Unmerge it, or switch it on, first.")
    if method.shifts_base:
        initial = saved.origin.initial if initial is None and saved is not None else initial
        if initial is not None and not isinstance(initial, PretrainedTeacher):
            initial = PretrainedTeacher(model, initial)  # checks that they are what this adapter started from
    values = initial.initial if isinstance(initial, PretrainedTeacher) and method.shifts_base else None
    plain = dataclasses.replace(PlainBase.under(model, None if base is None else str(base)), trained=model)
    plain, bits = rounded_base(plain, model)
    return _Source(model, method, values, plain, infer_task(model), saved.tokenizer() if saved else None, saved, bits)


def _refuse_impossible(source: _Source, to: Form) -> None:
    name = source.method.name
    if to == "lora" and not source.method.low_rank:
        way_out = "Export it with --to merged." if source.method.mergeable else "balora.load gives the trained model."
        raise BALoraError(f"Method {name} trains {source.method.trains}, so the change is no LoRA. {way_out}")
    if to == "merged" and not source.method.mergeable:
        raise BALoraError(
            f"Method {name} adds layers with an activation between them, which no weight of the pre-trained model can hold, so it "
            "cannot be merged. balora.load gives the trained model."
        )
    if to == "lora" and source.residual:
        raise BALoraError(
            f"Method {name} moved part of the pre-trained weights into the adapter, so a LoRA on the original ones "
            "needs the initial values: pass initial= (a PretrainedTeacher made before training, or the contents of the "
            "run's initial.safetensors), give the run's folder in place of the model, or export with to='merged'."
        )


def _export(source: _Source, to: Form, output: Path, check: bool) -> ExportReport:
    model = source.model
    assert model is not None
    dtype = narrowest_dtype(model)
    probe = make_probe(model, source.tokenizer) if check else []
    trained = probe_outputs(model, probe)
    note = None
    if to == "lora" and source.bits is not None:
        start = source.base.load(source.initial) if source.initial is not None else None
        trained, note = in_few_bits(model, start, source.initial, probe, trained)
        del start
    change = _change(source, to) if source.method.low_rank else None
    with to_the_side(output) as side:
        if change is None:
            model.save_pretrained(side)  # type: ignore[operator]
        source.model = model = None
        if change is not None:
            _write(source, change, to, side)
        agreement = None
        if check:
            exported = _load_back(source, to, side)
            agreement = compare(trained, probe_outputs(exported, probe), dtype)
            if not agreement.holds:
                raise BALoraError(_disagreement(source, to, agreement))
        rank = change.config.r if change is not None and to == "lora" else None
        _write_rest(source, to, side, rank, agreement, note)
    files = tuple(sorted(path for path in output.rglob("*") if path.is_file()))
    return ExportReport(to, output, files, rank, agreement, note)


def _change(source: _Source, to: Form) -> Change:
    assert isinstance(source.model, PeftModel)
    as_is = source.as_is(to)
    change = change_of(source.model, None if as_is else source.initial)
    return change if as_is else add_drawn(change, source.model, source.base.drawn())


def _write(source: _Source, change: Change, to: Form, side: Path) -> None:
    if to == "lora":
        write_lora(change, side, source.base.address, source.base.revision)
        return
    # What the start left of the weights and the whole adapter make the same sum as the weights and what changed.
    merged = source.base.load(source.initial, as_is=source.as_is(to))
    merge_into(merged, change)
    merged.save_pretrained(side)  # type: ignore[operator]


def _load_back(source: _Source, to: Form, side: Path) -> nn.Module:
    """What was written, as anyone loads it."""
    if to == "lora":
        return PeftModel.from_pretrained(source.base.load(source.initial), side)
    return source.base.kind.from_pretrained(side).to(source.base.device)


def _write_rest(
    source: _Source, to: Form, side: Path, rank: int | None, agreement: Agreement | None, note: str | None
) -> None:
    """Tokenizers and the card."""
    if source.tokenizer is not None:
        source.tokenizer.save_pretrained(side)
    saved, config = source.saved, source.base.config
    settings = saved.settings if saved else None
    target = load_target_tokenizer(settings) if settings else None
    if target is not None:
        target.save_pretrained(side / TARGET_TOKENIZER)
    record = (read_record(saved.run) if saved and saved.run else None) or {}
    provenance = {**record.get("provenance", {}), "data": record.get("data"), "resumed": record.get("resumed")}
    classifies = source.task == "classification"
    subject = Subject(
        base=settings.model if settings else source.base.address,
        task=source.task,
        method=source.method.name,
        labels=[config.id2label[number] for number in range(config.num_labels)] if classifies else None,
        rank=rank,
        difference=None if agreement is None else str(agreement),
        note=note,
        rounding=source.base.rounding if to == "lora" else None,
    )
    card = model_card(settings, record.get("metrics", {}), provenance, form=to, subject=subject)
    (side / "README.md").write_text(card, encoding="utf-8")


def _disagreement(source: _Source, to: Form, agreement: Agreement) -> str:
    where = f" at {source.base.address}" if source.base.address else ""
    return (
        f"The exported {'LoRA' if to == 'lora' else 'model'} does not agree with the trained model and was not kept: "
        f"{agreement}. Is the pre-trained model{where} the one that was trained? Another can be named with base=."
    )


__all__ = ["ExportReport", "export"]
