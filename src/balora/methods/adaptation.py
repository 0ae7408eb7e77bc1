"""`balora.adapt`: a pre-trained model in, the same function with something to train out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from balora.errors import BALoraError, raise_all
from balora.methods.init.residual_init import store_all_residuals
from balora.methods.initial_state import check_identity, own_tensors, probe_logits, store_initial_state
from balora.methods.layers.peft_lora import adapted_names, head_names, with_ranks
from balora.methods.method import AdaptOptions, Batches, Method, unwrapped_on_error
from balora.methods.quantization.quantize import quantize, take_over
from balora.methods.registry import find_method, option_problems
from balora.models.adapted_model import ADAPTER
from balora.models.fsdp import is_shard, part_of, reshard, shard


def adapt(
    model: PreTrainedModel,
    method: str = "balora",
    *,
    rank: int = 8,
    alpha: float | None = None,
    dropout: float = 0.0,
    target_modules: str | list[str] = "all-linear",
    seed: int = 0,
    initial: Mapping[str, Tensor] | None = None,
    total_steps: int | None = None,
    calibration: Callable[[int], Batches] | None = None,
    **options: Any,
) -> nn.Module:
    """Prepare a pre-trained model for fine-tuning by a named method, its function unchanged (but for ``bits``, which round it).

    Args:
        model: A transformers model, freshly loaded. It is changed in place, as peft does.
        method: A name from `balora methods`.
        rank: r, at most the smaller side of every target layer.
        alpha: The adapter's scaling is alpha / rank; default ``rank``, the paper's choice.
        dropout: On the adapter's input; the paper uses 0.
        target_modules: ``all-linear`` (all but the output head), a regular expression over whole names, or a list of names.
        seed: Of the start.
        initial: The trainable tensors' initial values of an earlier run, to start from those instead of computing them
            (what a checkpoint holds).
        total_steps: Optimizer steps to come; ``adalora`` must know.
        calibration: Gives the number of batches it is asked for, one row of the training data each, ``labels`` included;
            ``loraga``, ``corda`` and ``cordapp`` start from them.
        **options: The method's own, as `balora methods NAME` lists them.

    Returns:
        A `peft.PeftModel`; for ``full``, ``bitfit`` and the bottleneck adapters the model itself.

    Raises:
        BALoraError: Something asked for cannot be done; the sentence names it and the way out.

    Example:
        >>> import balora, transformers
        >>> config = transformers.LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        ...     num_attention_heads=2)
        >>> model = balora.adapt(transformers.LlamaForCausalLM(config), method="balora", rank=4)
        >>> sum(p.numel() for p in model.parameters() if p.requires_grad)
        1088
    """
    spec = find_method(method)
    checked = check_options(spec, rank, alpha, dropout, target_modules, seed, options)
    checked = dataclasses.replace(checked, total_steps=total_steps, calibration=calibration)
    if getattr(model, "peft_config", None):
        raise BALoraError("The model already carries an adapter. Merge it (merge_and_unload) or load the model afresh.")
    if any(is_shard(parameter) for parameter in model.parameters()):
        raise BALoraError("The model is sharded over devices already. Adapt it first, and shard it afterwards.")
    if initial is not None:
        _seat_heads(model, initial)
    take_over(model)
    before = probe_logits(model)
    learnt = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        adapted = spec.build(model, checked) if initial is None else _restart(spec, model, checked, initial)
    except BALoraError:
        # peft freezes as it wraps: what is refused goes back as it came.
        for parameter, flag in learnt:
            parameter.requires_grad_(flag)
        raise
    check_identity(before, adapted, method)
    if checked.extra.get("bits") and not any(p.is_meta for p in adapted.parameters()):
        adapted = _quantized(spec, adapted, checked)
    store_initial_state(adapted, method, checked, residual_base=spec.residual_base)
    return adapted


def check_options(
    spec: Method,
    rank: int,
    alpha: float | None,
    dropout: float,
    target_modules: str | list[str],
    seed: int,
    extra: Mapping[str, Any],
) -> AdaptOptions:
    """Check what was asked of a method, all at once.

    Raises:
        BALoraError: One or more values cannot be used.
    """
    problems = []
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        problems.append(f"method.rank is a whole number of at least 1, not {rank!r}.")
    if alpha is None:
        alpha = rank
    elif not isinstance(alpha, int | float) or isinstance(alpha, bool) or not alpha > 0:
        problems.append(f"method.alpha must be above 0, not {alpha!r}.")
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        problems.append(f"method.dropout is a probability from 0 to below 1, not {dropout!r}.")
    if not target_modules:
        problems.append("method.target_modules is empty; name layers, or write all-linear.")
    problems += option_problems(spec, extra)
    raise_all(problems, f"Method {spec.name!r} cannot be set up")
    defaults = {name: option.default for name, option in spec.options.items()}
    return AdaptOptions(
        rank=rank, alpha=alpha, dropout=dropout, target_modules=target_modules, seed=seed, extra={**defaults, **extra}
    )


def _restart(spec: Method, model: PreTrainedModel, options: AdaptOptions, initial: Mapping[str, Tensor]) -> nn.Module:
    """Build from stored initial values: no decomposition, so no chance that another machine decides another one."""
    if spec.form == "lora":
        options = with_ranks(options, _stored_ranks(initial) if spec.uneven else {})
    adapted = spec.wrap(model, options)
    with unwrapped_on_error(adapted):
        if spec.check is not None:
            spec.check(adapted, options)
        # What came with the pre-trained weights (full fine-tuning) is not stored again.
        load_trainable(adapted, initial, strict=spec.form != "model")
        if spec.residual_base:
            store_all_residuals(adapted)
    return adapted


def _quantized(spec: Method, adapted: nn.Module, options: AdaptOptions) -> nn.Module:
    """The model with its frozen weights rounded: the adapter is taken off and put on again with the values it had."""
    own = {name: parameter.detach() for name, parameter in own_tensors(adapted)}
    targets = adapted_names(adapted)
    model: Any = adapted.unload()  # type: ignore[operator]
    quantize(model, head_names(model), options.extra["bits"], double=options.extra["double_quantization"])
    extra = {**options.extra, "bits": None}
    again = with_ranks(
        dataclasses.replace(options, target_modules=targets, extra=extra), _stored_ranks(own) if spec.uneven else {}
    )
    adapted = spec.wrap(model, again)
    load_trainable(adapted, own)
    return adapted


def _stored_ranks(initial: Mapping[str, Tensor]) -> dict[str, int]:
    """Rank by layer, from the stored A's."""
    ending = f".lora_A.{ADAPTER}.weight"
    return {
        name.removeprefix("base_model.model.").removesuffix(ending): len(value)
        for name, value in initial.items()
        if name.endswith(ending)
    }


@torch.no_grad()
def _seat_heads(model: PreTrainedModel, initial: Mapping[str, Tensor]) -> None:
    """Write a stored head into the model before it is probed: the one it was loaded with was drawn at random, or was not
    yet the probe's, and is no part of the function that must stay.
    """
    parameters = dict(model.named_parameters())
    for name, value in initial.items():
        own = name.removeprefix("base_model.model.").replace(f".modules_to_save.{ADAPTER}.", ".")
        if own in parameters and parameters[own].shape == value.shape:
            parameters[own].copy_(value)


@torch.no_grad()
def load_trainable(model: nn.Module, values: Mapping[str, Tensor], *, strict: bool = True) -> None:
    """Write stored values into a model's trainable tensors (and an adapter's frozen ones, such as LoRA-FA's A).

    Args:
        model: An adapted model.
        values: By parameter name.
        strict: Whether every trainable tensor must be there.

    Raises:
        BALoraError: A tensor is missing, unknown, or of another shape.
    """
    reshard(model)
    parameters = dict(own_tensors(model))
    for name in values.keys() - parameters.keys():
        raise BALoraError(
            f"The stored values have {name}, which this model does not train. Is it another model or method?"
        )
    for name, parameter in parameters.items():
        if name not in values:
            if strict and parameter.requires_grad:
                raise BALoraError(
                    f"The stored values lack {name}, which this model trains. Is it another model or method?"
                )
            continue
        if values[name].shape != parameter.shape:
            raise BALoraError(
                f"{name} is stored as {tuple(values[name].shape)} and is {tuple(parameter.shape)} in this model. Use the "
                "rank and the model it was trained with."
            )
        held = shard(parameter)  # all of it, but under FSDP2
        held.copy_(part_of(values[name].to(held.device), parameter))
