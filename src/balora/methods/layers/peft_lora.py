"""LoRA through peft, with checks that peft does not make. All low-rank methods use it."""

import dataclasses
import logging
import re
from collections.abc import Iterator
from typing import Any

import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from torch import nn
from transformers import PreTrainedModel

from balora.deprecation import deprecated_names
from balora.errors import BALoraError
from balora.methods.initial_state import NOTICES
from balora.methods.layers.also_trained import find_also_trained
from balora.methods.layers.lora_linear import lora_linear
from balora.methods.method import AdaptOptions
from balora.methods.quantization.quantize import check_quantizable
from balora.methods.target_modules import ALL_LINEAR, find_targets
from balora.models.adapted_model import ADAPTER
from balora.models.classifier_head import HEAD_NAMES
from balora.models.multimodal import MULTIMODAL_CLASSES, is_multimodal, parts_beside_text, say_left_alone

logger = logging.getLogger("balora")
_NF4_BLOCK_SIZE = 64


def wrap_lora(
    model: PreTrainedModel, options: AdaptOptions, *, kind: type[LoraConfig] = LoraConfig, **settings: Any
) -> PeftModel:
    """Add LoRA to a model in place: A random (Kaiming), B = 0, so that the function is unchanged.

    ``kind`` is the class of peft's config, and ``settings`` are further fields of it. If the rank is too high for a target, if
    no layer matches, or if the method cannot adapt a matching stack of experts, a `BALoraError` leaves the model unchanged.
    """
    check_quantizable(model, options.extra)
    heads = head_names(model)
    also_trained = find_also_trained(model, options)
    outside = [*heads, *_left_alone(model, options.target_modules)]
    targets = find_targets(model, options, outside)
    stacks = targets.stacks
    if stacks and (options.dropout > 0 or settings.get("use_dora") or kind is not LoraConfig):
        reason = "dropout on the adapter's input" if options.dropout > 0 else "this method"
        raise BALoraError(
            f"{stacks[0]} stacks the weights of several experts, and {reason} does not work there. Name the layers to adapt "
            f"in target_modules, such as [q_proj, k_proj, v_proj, o_proj]{', or set dropout: 0' if options.dropout else ''}."
        )
    # peft takes layers with some names for experts of an older transformers version, but only under LoRA and as modules.
    reserved = [] if issubclass(kind, AdaLoraConfig) else targets.reserved
    modules = [name for name in targets.modules if name not in reserved] if reserved else targets.modules
    fields = {
        "r": options.rank,
        "lora_alpha": options.alpha,  # an integer by peft's annotation, but a fraction works
        "lora_dropout": options.dropout,
        "target_modules": modules,
        "target_parameters": [*stacks, *(f"{name}.weight" for name in reserved)] or None,
        "exclude_modules": _exclusion(outside, targets.excluded),
        # peft adds the usual heads itself.
        "modules_to_save": [*(name for name in heads if name not in SEQ_CLS_HEAD_NAMES), *also_trained.modules] or None,
        "trainable_token_indices": also_trained.tokens or None,
        "rank_pattern": {rf"^{re.escape(name)}(\.weight)?$": rank for name, rank in options.ranks.items()},
        "task_type": task_type(model),
    }
    config = kind(**{**fields, **settings})
    if kind is LoraConfig:
        config._register_custom_module({nn.Linear: lora_linear})  # type: ignore[dict-item]
    try:
        # peft draws A from the global generator. Fork it, so that A depends only on the seed of the options.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            peft_model = get_peft_model(model, config)
    except ValueError as error:
        raise BALoraError(
            f"peft cannot adapt the layers that target_modules selects: {' '.join(str(error).split())[:300]} Leave these layers "
            "out of target_modules, or name them in exclude_modules."
        ) from error
    for notice in targets.notices:
        logger.warning(notice)
    setattr(peft_model, NOTICES, targets.notices)
    if not options.ranks:
        _check_rank(peft_model, settings.get("init_r", options.rank))
    say_left_alone(outside[len(heads) :])
    assert isinstance(peft_model, PeftModel)
    return peft_model


def _left_alone(model: nn.Module, targets: str | list[str]) -> list[str]:
    """Return the parts of a multimodal model that get no adapter, unless ``targets`` selects layers by their full names."""
    by_full_name = targets != ALL_LINEAR if isinstance(targets, str) else any("." in target for target in targets)
    return [] if by_full_name else parts_beside_text(model)


def _exclusion(heads: list[str], names: list[str]) -> str | None:
    """Return a regular expression for heads with all that they contain, and for further layers by their full names.

    peft excludes a head by itself only for `all-linear`, and only if the head is a single layer.
    """
    patterns = [rf"{re.escape(head)}(\..*)?" for head in heads] + [re.escape(name) for name in names]
    return f"({'|'.join(patterns)})" if patterns else None


def check_dora(model: nn.Module, options: AdaptOptions) -> None:
    """Refuse 4-bit targets with a row length that is not a multiple of the block size: peft's magnitudes would be wrong."""
    for name, layer in lora_layers(model) if options.extra["bits"] == 4 else ():
        columns = weight_shape(layer)[1]
        if columns % _NF4_BLOCK_SIZE:
            raise BALoraError(
                f"Method dora in 4 bits needs layers with a multiple of {_NF4_BLOCK_SIZE} inputs, and {name} has {columns}: "
                "bitsandbytes dequantizes such a weight wrongly on the CPU. Use bits: 8, or leave that layer out of target_modules."
            )


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    """Yield the LoRA layers over weight matrices, with their names in the pre-trained model."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and ADAPTER in module.lora_A:
            yield name.removeprefix("base_model.model."), module


def weight_shape(layer: LoraLayer) -> tuple[int, int]:
    """Return (out, in) of the adapted layer, or of one expert in a stack."""
    return layer.out_features, layer.in_features


def target_name(name: str, layer: LoraLayer) -> str:
    """Return the name, in the pre-trained model, of the layer or stack of expert weights that a LoRA layer adapts.

    peft wraps the second stack of a module around the first, which adds ``base_layer`` to the name of the inner one.
    """
    if not isinstance(layer, ParamWrapper):
        return name
    return re.sub(r"(\.base_layer)+$", "", name) + f".{layer.parameter_name}"


def adapted_names(model: nn.Module) -> list[str]:
    """Return the full names of all adapted layers and stacks, in the form of ``target_modules``."""
    return sorted(
        target_name(name.removeprefix("base_model.model."), module)
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer) and (ADAPTER in module.lora_A or ADAPTER in module.lora_embedding_A)
    )


def with_ranks(options: AdaptOptions, ranks: dict[str, int]) -> AdaptOptions:
    """Return the options with the ranks that differ from ``options.rank``."""
    return dataclasses.replace(options, ranks={name: rank for name, rank in ranks.items() if rank != options.rank})


def task_type(model: nn.Module) -> TaskType | None:
    """Return peft's task type for a transformers model, from its class name; None for an unknown task head."""
    name = type(model).__name__
    if name.endswith("ForSequenceClassification"):
        return TaskType.SEQ_CLS
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return TaskType.SEQ_2_SEQ_LM
    if name.endswith(
        ("ForCausalLM", "LMHeadModel", "ModelWithLMHead", "GenerationDecoder")
    ):  # the last two: Reformer, BERT
        return TaskType.CAUSAL_LM
    if is_multimodal(model) and (name.endswith("ForConditionalGeneration") or name in MULTIMODAL_CLASSES.values()):
        return TaskType.CAUSAL_LM
    return None


def head_names(model: nn.Module) -> list[str]:
    """Return the modules of the classification head, which every method trains; empty if there is no such head."""
    if task_type(model) is not TaskType.SEQ_CLS:
        return []
    return [name for name in HEAD_NAMES if hasattr(model, name)]


def _check_rank(peft_model: PeftModel, rank: int) -> None:
    too_small = [(name, shape) for name, layer in lora_layers(peft_model) if rank > min(shape := weight_shape(layer))]
    if too_small:
        peft_model.unload()  # restores the caller's model
        name, (rows, columns) = too_small[0]
        raise BALoraError(
            f"Rank {rank} is too high for {len(too_small)} of the target layers: {name} is {rows} × {columns}, so its rank is "
            f"at most {min(rows, columns)}. Lower method.rank, or name that layer in exclude_modules."
        )


__getattr__ = deprecated_names(__name__, {"wrap": f"{__name__}.wrap_lora"})
