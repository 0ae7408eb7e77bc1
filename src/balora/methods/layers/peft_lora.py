"""LoRA through peft, with the checks that peft leaves out. The other low-rank methods start from what this builds."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from torch import nn
from transformers import PreTrainedModel

from balora.deprecation import deprecated_names
from balora.errors import BALoraError
from balora.methods.layers.lora_linear import lora_linear
from balora.methods.method import AdaptOptions
from balora.methods.quantization.quantize import refuse_unquantizable
from balora.methods.target_modules import find_targets, no_match
from balora.models.adapted_model import ADAPTER
from balora.models.classifier_head import HEAD_NAMES

_BLOCK_SIZE = 64  # of NF4


def wrap_lora(
    model: PreTrainedModel, options: AdaptOptions, *, kind: type[LoraConfig] = LoraConfig, **settings: Any
) -> PeftModel:
    """Make a peft model: A random (Kaiming), B = 0, so that the function is unchanged.

    Args:
        model: Changed in place.
        options: Checked.
        kind: peft's config class.
        **settings: Further fields of it.

    Raises:
        BALoraError: The rank exceeds a target's smaller side, no layer is matched, or a stack of experts is matched that
            the method cannot adapt. The model is as it was.
    """
    refuse_unquantizable(model, options.extra)
    heads = head_names(model)
    layers, stacks = find_targets(model, options.target_modules, heads)
    if stacks and (options.dropout > 0 or settings.get("use_dora") or kind is not LoraConfig):
        what = "dropout on the adapter's input" if options.dropout > 0 else "this method"
        raise BALoraError(
            f"{stacks[0]} stacks the weights of several experts, and {what} does not work there. Name the layers to adapt "
            "in target_modules, such as [q_proj, k_proj, v_proj, o_proj]"
            + (", or set dropout: 0." if options.dropout else ".")
        )
    fields = {
        "r": options.rank,
        "lora_alpha": options.alpha,  # peft divides by it; a fraction is as good
        "lora_dropout": options.dropout,
        "target_modules": layers,
        "target_parameters": stacks or None,
        # peft leaves out only a head that is one layer, and that only for `all-linear`.
        "exclude_modules": rf"({'|'.join(map(re.escape, heads))})(\..*)?" if heads else None,
        "modules_to_save": [name for name in heads if name not in SEQ_CLS_HEAD_NAMES] or None,  # peft adds those itself
        "rank_pattern": {f"^{re.escape(name)}$": rank for name, rank in options.ranks.items()},
        "task_type": task_type(model),
    }
    config = kind(**{**fields, **settings})
    if kind is LoraConfig:
        config._register_custom_module({nn.Linear: lora_linear})  # type: ignore[dict-item]
    try:
        # peft draws A from the global generator; fork it so that the start depends on our seed alone.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            peft_model = get_peft_model(model, config)
    except ValueError as error:
        if "not found in the base model" not in str(error) and "No modules were targeted" not in str(error):
            raise
        raise BALoraError(no_match(model, options.target_modules, heads)) from error
    if not options.ranks:
        _refuse_rank(peft_model, settings.get("init_r", options.rank))
    assert isinstance(peft_model, PeftModel)
    return peft_model


def wrap_rslora(model: PreTrainedModel, options: AdaptOptions) -> PeftModel:
    """Add LoRA with the scaling alpha / √rank.

    Reference: Kalajdzievski, rsLoRA, 2023.
    """
    return wrap_lora(model, options, use_rslora=True)


def wrap_dora(model: PreTrainedModel, options: AdaptOptions) -> PeftModel:
    """Add DoRA: the magnitude of each row of W is trained separately from its direction.

    Reference: Liu et al., DoRA, 2024.
    """
    return wrap_lora(model, options, use_dora=True)


def check_dora(model: nn.Module, options: AdaptOptions) -> None:
    """Refuse 4-bit layers whose row length is not a multiple of the block size: peft would compute wrong magnitudes.

    Raises:
        BALoraError: Such a layer is a target.
    """
    for name, layer in lora_layers(model) if options.extra["bits"] == 4 else ():
        columns = weight_shape(layer)[1]
        if columns % _BLOCK_SIZE:
            raise BALoraError(
                f"Method dora in 4 bits needs layers with a multiple of {_BLOCK_SIZE} inputs, and {name} has {columns}: "
                "bitsandbytes dequantizes such a weight wrongly on the CPU. Use bits: 8, or leave that layer out of target_modules."
            )


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    """The LoRA layers over weight matrices, with their names inside the pre-trained model."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and ADAPTER in module.lora_A:
            yield name.removeprefix("base_model.model."), module


def weight_shape(layer: LoraLayer) -> tuple[int, int]:
    """(out, in) of the layer that a LoRA layer wraps, whichever way round it is stored; of one expert in a stack."""
    return layer.out_features, layer.in_features


def target_name(name: str, layer: LoraLayer) -> str:
    """What a LoRA layer adapts, by its name in the pre-trained model: a layer, or a stack of expert weights.

    peft wraps the second stack of a module around the first, so that the inner one's name has a ``base_layer`` more.
    """
    if not isinstance(layer, ParamWrapper):
        return name
    return re.sub(r"(\.base_layer)+$", "", name) + f".{layer.parameter_name}"


def adapted_names(model: nn.Module) -> list[str]:
    """Full names of everything a LoRA adapts, as ``target_modules`` takes them."""
    return sorted(
        target_name(name.removeprefix("base_model.model."), module)
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer) and (ADAPTER in module.lora_A or ADAPTER in module.lora_embedding_A)
    )


def with_ranks(options: AdaptOptions, ranks: dict[str, int]) -> AdaptOptions:
    """The options with a rank for each layer that has another than the rest."""
    return dataclasses.replace(options, ranks={name: rank for name, rank in ranks.items() if rank != options.rank})


def task_type(model: nn.Module) -> TaskType | None:
    """The task type peft has for a transformers model, from its class name; None when it has no task head we know."""
    name = type(model).__name__
    if name.endswith("ForSequenceClassification"):
        return TaskType.SEQ_CLS
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return TaskType.SEQ_2_SEQ_LM
    if name.endswith(("ForCausalLM", "LMHeadModel")):
        return TaskType.CAUSAL_LM
    return None


def head_names(model: nn.Module) -> list[str]:
    """The modules that make up a classification head, which every method trains whole; none where there is no such head."""
    if task_type(model) is not TaskType.SEQ_CLS:
        return []
    return [name for name in HEAD_NAMES if hasattr(model, name)]


def _refuse_rank(peft_model: PeftModel, rank: int) -> None:
    too_wide = [(name, shape) for name, layer in lora_layers(peft_model) if rank > min(shape := weight_shape(layer))]
    if too_wide:
        peft_model.unload()  # give the caller's model back as it was
        name, (rows, columns) = too_wide[0]
        raise BALoraError(
            f"Rank {rank} is above what {len(too_wide)} of the target layers can hold: {name} is {rows} × {columns}, "
            f"so its rank is at most {min(rows, columns)}. Lower method.rank, or leave that layer out of target_modules."
        )


__getattr__ = deprecated_names(__name__, {"wrap": f"{__name__}.wrap_lora"})
