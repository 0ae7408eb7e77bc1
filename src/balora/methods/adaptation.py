"""`balora.adapt`: prepare a pre-trained model for fine-tuning without changing its function."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from balora.errors import BALoraError, raise_all
from balora.methods.init.residual_init import residuals_undone_on_failure, store_all_residuals
from balora.methods.initial_state import (
    NOTICES,
    check_same_function,
    probe_logits,
    record_initial_state,
    stored_parameters,
)
from balora.methods.layer_probe import find_unadaptable_layers
from balora.methods.layers.peft_lora import adapted_names, head_names, with_ranks
from balora.methods.method import AdaptOptions, Batches, Method
from balora.methods.quantization.quantize import check_quantized_weights, quantize, replace_bitsandbytes_layers
from balora.methods.registry import find_method, option_problems
from balora.methods.rollback import restored_on_failure
from balora.models.adapted_model import ADAPTER
from balora.models.fsdp import is_dtensor, local_shard, local_slice, reshard


def adapt(
    model: PreTrainedModel,
    method: str = "balora",
    *,
    rank: int = 8,
    alpha: float | None = None,
    dropout: float = 0.0,
    target_modules: str | list[str] = "all-linear",
    exclude_modules: str | list[str] | None = None,
    seed: int = 0,
    initial: Mapping[str, Tensor] | None = None,
    total_steps: int | None = None,
    calibration: Callable[[int], Batches] | None = None,
    **options: Any,
) -> nn.Module:
    """Prepare a pre-trained model for fine-tuning by a named method.

    The function of the model stays the same, except that ``bits`` quantizes its weights.

    Args:
        model: A freshly loaded transformers model. It is changed in place, as peft does.
        method: A name from `balora methods`.
        rank: r, at most the smaller side of every target layer.
        alpha: The adapter's scaling is alpha / rank. Default: ``rank``, as in the paper.
        dropout: Dropout probability on the adapter's input; the paper uses 0.
        target_modules: ``all-linear`` (all but the output head), a regular expression over full names, or a list of names.
        exclude_modules: Modules that get no adapter although ``target_modules`` selects them: a regular expression over full
            names, or a list of names. A module excludes all layers that it contains.
        seed: Seed of the random initial values.
        initial: Initial values of the trainable tensors by name, from a checkpoint of an earlier run. They replace the
            computation of initial values.
        total_steps: Number of optimizer steps of the run; ``adalora`` needs it.
        calibration: Function that returns the given number of batches, each with one row of the training data and its
            ``labels``; ``loraga``, ``corda`` and ``cordapp`` need it.
        **options: Options of the method, as `balora methods NAME` lists them.

    Returns:
        A `peft.PeftModel`; for ``full``, ``bitfit`` and the bottleneck adapters the model itself.

    Raises:
        BALoraError: An argument is invalid or the method does not work with this model. The message names a way out.

    If it raises anything, the model is as before (weights that were split into adapter and residual: up to rounding). Only
    an interrupt while ``bits`` replaces the weights leaves a model that must be loaded again.

    Example:
        >>> import balora, transformers
        >>> config = transformers.LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        ...     num_attention_heads=2)
        >>> model = balora.adapt(transformers.LlamaForCausalLM(config), method="balora", rank=4)
        >>> sum(p.numel() for p in model.parameters() if p.requires_grad)
        1088
    """
    spec = find_method(method)
    checked = check_options(spec, rank, alpha, dropout, target_modules, seed, options, exclude_modules)
    checked = dataclasses.replace(checked, total_steps=total_steps, calibration=calibration)
    if getattr(model, "peft_config", None):
        raise BALoraError("The model already has an adapter. Merge it (merge_and_unload) or load the model again.")
    if any(is_dtensor(parameter) for parameter in model.parameters()):
        raise BALoraError(
            "The model is already sharded over devices. Load it without tp_plan (tensor parallelism is not supported), adapt it, "
            "and let the Trainer shard it afterwards (FSDP version 2)."
        )
    _refuse_offloaded(model)
    stored = _stored_in_model(model, initial or {})
    quantizes = checked.extra.get("bits") and not any(p.is_meta for p in model.parameters())
    with restored_on_failure(model, [parameter for parameter, _ in stored]):
        _load_heads(stored)
        replace_bitsandbytes_layers(model)
        before = _probed(model)
        if initial is not None:
            adapted = _rebuild(spec, model, checked, initial)
        else:
            if spec.form == "lora":
                found = find_unadaptable_layers(model)
                checked = dataclasses.replace(checked, dead=found.dead, unused=found.unused)
            adapted = spec.build(model, checked)
        with residuals_undone_on_failure(adapted) if spec.residual_base else contextlib.nullcontext():
            check_same_function(before, adapted, method)
            if quantizes:
                double = checked.extra["double_quantization"]
                check_quantized_weights(adapted, head_names(model), checked.extra["bits"], double=double)
    # Outside the block, which keeps the weights in memory that quantization replaces.
    if quantizes:
        adapted = _quantize_frozen_weights(spec, adapted, checked)
    record_initial_state(adapted, method, checked, residual_base=spec.residual_base)
    return adapted


def check_options(
    spec: Method,
    rank: int,
    alpha: float | None,
    dropout: float,
    target_modules: str | list[str],
    seed: int,
    extra: Mapping[str, Any],
    exclude_modules: str | list[str] | None = None,
) -> AdaptOptions:
    """Check the arguments of `adapt`, list all invalid ones in one error, and fill in the defaults of the method's options."""
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
    if exclude_modules and spec.form != "lora":
        problems.append(
            f"method.exclude_modules has no effect, because method {spec.name!r} does not adapt single layers. Leave it out."
        )
    problems += option_problems(spec, extra)
    raise_all(problems, f"Method {spec.name!r} cannot be set up")
    defaults = {name: option.default for name, option in spec.options.items()}
    return AdaptOptions(
        rank=rank,
        alpha=alpha,
        dropout=dropout,
        target_modules=target_modules,
        exclude_modules=exclude_modules or None,
        changes_weights=spec.residual_base,
        seed=seed,
        extra={**defaults, **extra},
    )


def _probed(model: PreTrainedModel) -> Tensor | None:
    """Return the model's logits on a few tokens; a forward that refuses plain text is explained."""
    try:
        return probe_logits(model)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, NotImplementedError) as error:
        raise BALoraError(
            f"{type(model).__name__} cannot be run on plain text, which balora does to check the adapter: {error} Configure "
            "the model so that model(input_ids=..., attention_mask=...) works."
        ) from error


def _rebuild(spec: Method, model: PreTrainedModel, options: AdaptOptions, initial: Mapping[str, Tensor]) -> nn.Module:
    """Build the adapter from stored initial values, because another machine could compute another decomposition."""

    def restore(adapted: nn.Module, options: AdaptOptions) -> None:
        # Full fine-tuning stores only values that the pre-trained weights do not have, so names may be missing.
        load_trainable(adapted, initial, strict=spec.form != "model")
        if spec.residual_base:
            store_all_residuals(adapted)

    options = with_ranks(options, _stored_ranks(initial) if spec.uneven else {})
    options = dataclasses.replace(options, stored=_stored_layers(initial))
    return dataclasses.replace(spec, initialize=restore).build(model, options)


def _quantize_frozen_weights(spec: Method, adapted: nn.Module, options: AdaptOptions) -> nn.Module:
    """Remove the adapter, quantize the model, and add the adapter again with the same values."""
    values = {name: parameter.detach() for name, parameter in stored_parameters(adapted)}
    targets = adapted_names(adapted)
    model: Any = adapted.unload()  # type: ignore[operator]
    quantize(model, head_names(model), options.extra["bits"], double=options.extra["double_quantization"])
    notices = getattr(adapted, NOTICES, ())
    extra = {**options.extra, "bits": None}
    options = dataclasses.replace(
        options, target_modules=targets, exclude_modules=None, stored=_stored_layers(values), extra=extra
    )
    adapted = spec.wrap(model, with_ranks(options, _stored_ranks(values) if spec.uneven else {}))
    setattr(adapted, NOTICES, notices)
    load_trainable(adapted, values)
    return adapted


def _stored_ranks(values: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the rank of each layer: the number of rows of A."""
    ending = f".lora_A.{ADAPTER}.weight"
    return {
        name.removeprefix("base_model.model.").removesuffix(ending): len(value)
        for name, value in values.items()
        if name.endswith(ending)
    }


def _stored_layers(values: Mapping[str, Tensor]) -> frozenset[str]:
    """Return the names of the layers that have a stored adapter."""
    return frozenset(
        name.removeprefix("base_model.model.").partition(".lora_")[0] for name in values if ".lora_" in name
    )


def _stored_in_model(model: PreTrainedModel, initial: Mapping[str, Tensor]) -> list[tuple[nn.Parameter, Tensor]]:
    """Return the parameters of the pre-trained model that have a stored value, with the value."""
    parameters = dict(model.named_parameters())
    stored = []
    for name, value in initial.items():
        model_name = name.removeprefix("base_model.model.").replace(f".modules_to_save.{ADAPTER}.", ".")
        if model_name in parameters and parameters[model_name].shape == value.shape:
            stored.append((parameters[model_name], value))
    return stored


@torch.no_grad()
def _load_heads(stored: list[tuple[nn.Parameter, Tensor]]) -> None:
    """Load a stored classification head before the model's logits are recorded: the loaded model may have a random one."""
    for parameter, value in stored:
        parameter.copy_(value)


@torch.no_grad()
def load_trainable(model: nn.Module, values: Mapping[str, Tensor], *, strict: bool = True) -> None:
    """Load stored values by name into a model's trainable tensors (and an adapter's frozen ones, such as LoRA-FA's A).

    Unknown names and other shapes are refused; with ``strict``, so are trainable tensors without a value.
    """
    reshard(model)
    parameters = dict(stored_parameters(model))
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
        shard = local_shard(parameter)
        shard.copy_(local_slice(values[name].to(shard.device), parameter))


def _refuse_offloaded(model: nn.Module) -> None:
    """Refuse a model of which ``device_map`` has left weights outside of memory: they are on the meta device until they run."""
    devices: Mapping[str, Any] = getattr(model, "hf_device_map", None) or {}
    elsewhere = [name for name, device in devices.items() if str(device) == "disk"]
    if not elsewhere and any(parameter.is_meta for parameter in model.parameters()):
        elsewhere = [name for name, device in devices.items() if str(device) == "cpu"]
    if elsewhere:
        more = f" and {len(elsewhere) - 1} other parts" if len(elsewhere) > 1 else ""
        raise BALoraError(
            f"device_map has left {elsewhere[0]}{more} outside of the devices' memory, and a method needs all weights. Load the "
            "model without device_map, hold it in 4 bits (bits=4), or train with FSDP version 2 on several devices."
        )
