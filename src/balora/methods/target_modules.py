"""Target modules of an adapter: layers, and stacks of expert weights, which peft takes as a separate argument."""

import logging
import re

from peft.utils.transformers_weight_conversion import _MODEL_TO_CONVERSION_PATTERN, _MOE_TARGET_MODULE_MAPPING
from torch import nn
from torch.nn.modules.conv import _ConvNd
from transformers.pytorch_utils import Conv1D

from balora.errors import BALoraError, suggest

logger = logging.getLogger("balora")
ALL_LINEAR = "all-linear"


def find_targets(model: nn.Module, targets: str | list[str], heads: list[str]) -> tuple[str | list[str], list[str]]:
    """Return peft's ``target_modules``, and the full names of the selected stacks of expert weights.

    ``heads`` get no adapter. ``targets`` is ``all-linear``, a regular expression over full names, or names (or their last parts).
    """
    stacks = stacked_weights(model)
    if not stacks:
        return targets, []
    reserved = _names_reserved_for_experts(model)
    linear = {name: layer for name, layer in linear_layers(model) if name.split(".")[0] not in heads}
    if targets == ALL_LINEAR:
        output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
        # A gate with a single output has no low-rank change.
        names = [name for name, layer in linear.items() if layer is not output and min(layer.weight.shape) > 1]
        skipped = [name for name in names if name.rpartition(".")[2] in reserved]
        if skipped:
            reason = "peft reserves their name for experts' weights"
            logger.warning("%d layers such as %s get no adapter, because %s.", len(skipped), skipped[0], reason)
        return [name for name in names if name not in skipped], stacks
    selected = [name for name in linear if _matches(name, targets)]
    confused = next((name for name in selected if name.rpartition(".")[2] in reserved), None)
    if confused is not None:
        raise BALoraError(
            f"{confused} cannot be adapted, because peft reserves its name for experts' weights. Leave it out of "
            f"target_modules; the experts are {', '.join(sorted({name.rpartition('.')[2] for name in stacks}))}."
        )
    return selected, [name for name in stacks if _matches(name, targets)]


def stacked_weights(model: nn.Module) -> list[str]:
    """Return the names of weights that stack one matrix per expert, as in Mixtral, Qwen and DeepSeek in transformers 5."""
    return [
        f"{name}.{key}"
        for name, module in model.named_modules()
        if not isinstance(module, _ConvNd)
        for key, parameter in module.named_parameters(recurse=False)
        if parameter.dim() == 3 and min(parameter.shape) > 1
    ]


def no_match_message(model: nn.Module, targets: str | list[str], heads: list[str]) -> str:
    """Return the error message for targets that match no layer, or only a classification head."""
    linear = [name for name, _ in linear_layers(model)]
    in_head = next((name for name in linear if name.split(".")[0] in heads and _matches(name, targets)), None)
    names = sorted({name.rpartition(".")[2] for name in linear if name.split(".")[0] not in heads})
    names += sorted({name.rpartition(".")[2] for name in stacked_weights(model)})
    if in_head is not None:
        return (
            f"target_modules matches only {in_head}, a part of the classification head, and every method trains the head without "
            f"an adapter. Name layers below the head: {', '.join(names)}."
        )
    first = targets if isinstance(targets, str) else targets[0] if targets else ""
    hint = suggest(first, names)
    if isinstance(targets, str) and targets in names:
        hint = (
            f" A string is a regular expression over full names; for all layers with this last name write [{targets}]."
        )
    asked = targets if isinstance(targets, str) else ", ".join(targets)
    return f"target_modules {asked!r} matches no layer of the model.{hint} The layers are {', '.join(names)}."


def linear_layers(model: nn.Module) -> list[tuple[str, nn.Linear | Conv1D]]:
    """Return the linear layers of a model with their names; GPT-2's Conv1D is a transposed linear layer."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]


def _matches(name: str, targets: str | list[str]) -> bool:
    """Match as peft does: a regular expression over the full name, or the last parts of the name."""
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _names_reserved_for_experts(model: nn.Module) -> set[str]:
    """Return the last names that peft treats as experts of an older transformers version, in every layer of the model."""
    kind = getattr(getattr(model, "config", None), "model_type", None)
    return set(_MOE_TARGET_MODULE_MAPPING.get(_MODEL_TO_CONVERSION_PATTERN.get(kind, ""), {}))
