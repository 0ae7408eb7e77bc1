"""LoRA through peft, with the checks that peft leaves out. The other low-rank methods start from what this builds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from balora.errors import BALoraError, suggest
from balora.methods.registry import AdaptOptions

ADAPTER = "default"
"""peft's name for the one adapter balora makes."""


def build_lora(model: PreTrainedModel, options: AdaptOptions) -> PeftModel:
    """Wrap the model's target layers with LoRA: A random (Kaiming), B = 0, so that the function is unchanged.

    Raises:
        BALoraError: The rank exceeds a target's smaller side, or no layer is matched. The model is as it was.
    """
    return wrap(model, options)


def wrap(model: PreTrainedModel, options: AdaptOptions, **lora_settings: Any) -> PeftModel:
    """Make a peft LoRA model from checked options; ``lora_settings`` go to peft's `LoraConfig`."""
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,  # type: ignore[arg-type]  # peft divides by it; a fraction is as good
        lora_dropout=options.dropout,
        target_modules=options.target_modules,
        exclude_modules=_classification_head(model) if options.target_modules == "all-linear" else None,
        task_type=task_type(model),
        **lora_settings,
    )
    try:
        # peft draws A from the global generator; fork it so that the start depends on our seed alone.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            peft_model = get_peft_model(model, config)
    except ValueError as error:
        if "not found in the base model" not in str(error) and "No modules were targeted" not in str(error):
            raise
        raise BALoraError(_no_match(model, options.target_modules)) from error
    too_wide = [
        (name, shape) for name, layer in lora_layers(peft_model) if options.rank > min(shape := weight_shape(layer))
    ]
    if too_wide:
        peft_model.unload()  # give the caller's model back as it was
        name, (rows, columns) = too_wide[0]
        raise BALoraError(
            f"Rank {options.rank} is above what {len(too_wide)} of the target layers can hold: {name} is {rows} × {columns}, "
            f"so its rank is at most {min(rows, columns)}. Lower method.rank, or leave that layer out of target_modules."
        )
    assert isinstance(peft_model, PeftModel)
    return peft_model


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    """The LoRA layers over weight matrices, with their names inside the pre-trained model."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and ADAPTER in module.lora_A:
            yield name.removeprefix("base_model.model."), module


def weight_shape(layer: LoraLayer) -> tuple[int, int]:
    """(out, in) of the layer that a LoRA layer wraps, whichever way round it is stored."""
    return layer.out_features, layer.in_features


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


def _classification_head(model: nn.Module) -> str | None:
    """A regular expression for everything in the classification head, which is trained whole, not adapted.

    peft's `all-linear` leaves out a head that is one layer, not the layers inside a head such as RoBERTa's.
    """
    if task_type(model) is not TaskType.SEQ_CLS:
        return None
    names = [name for name in SEQ_CLS_HEAD_NAMES if hasattr(model, name)]
    return rf"({'|'.join(map(re.escape, names))})(\..*)?" if names else None


def _no_match(model: nn.Module, target: str | list[str]) -> str:
    names = sorted({n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)})
    asked = target if isinstance(target, str) else ", ".join(target)
    first = target if isinstance(target, str) else (target[0] if target else "")
    return (
        f"target_modules {asked!r} matches no layer of the model.{suggest(first, names)} There are {', '.join(names)}."
    )
