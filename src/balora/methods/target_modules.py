"""What an adapter is put on: layers, and stacks of expert weights, which peft wants told apart."""

from __future__ import annotations

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
    """Which layers and which stacks of expert weights are meant.

    Args:
        model: A transformers model.
        targets: ``all-linear``, a regular expression over whole names, or names (their last parts will do).
        heads: Modules of a classification head, which is trained whole.

    Returns:
        (what peft takes as target_modules, full names of the stacked weights).

    Raises:
        BALoraError: A layer is asked for by name that peft would take for an expert's.
    """
    stacks = stacked_weights(model)
    if not stacks:
        return targets, []
    taken = _taken_for_experts(model)
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and name.split(".")[0] not in heads
    ]
    if targets == ALL_LINEAR:
        output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
        # A gate with a single output has no low-rank change.
        linear = [n for n in linear if (layer := model.get_submodule(n)) is not output and min(layer.weight.shape) > 1]  # type: ignore[union-attr, arg-type]
        left_out = [name for name in linear if name.rpartition(".")[2] in taken]
        if left_out:
            logger.warning(
                "%d layers such as %s are not adapted: by their name peft takes them for experts' weights.",
                len(left_out),
                left_out[0],
            )
        return [name for name in linear if name not in left_out], stacks
    wanted = [name for name in linear if _matches(name, targets)]
    confused = next((name for name in wanted if name.rpartition(".")[2] in taken), None)
    if confused is not None:
        raise BALoraError(
            f"{confused} cannot be adapted: by its name peft takes it for an expert's weight. Leave it out of target_modules; "
            f"the experts themselves are {', '.join(sorted({name.rpartition('.')[2] for name in stacks}))}."
        )
    return wanted or [], [name for name in stacks if _matches(name, targets)]


def stacked_weights(model: nn.Module) -> list[str]:
    """Names of the weights that stack one matrix for each expert, as transformers 5 keeps Mixtral's, Qwen's, DeepSeek's."""
    return [
        f"{name}.{key}"
        for name, module in model.named_modules()
        if not isinstance(module, _ConvNd)
        for key, parameter in module.named_parameters(recurse=False)
        if parameter.dim() == 3 and min(parameter.shape) > 1
    ]


def no_match(model: nn.Module, target: str | list[str], heads: list[str]) -> str:
    """The sentence for targets that match nothing, or nothing but a classification head: what there is."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    own = next((name for name in linear if name.split(".")[0] in heads and _matches(name, target)), None)
    names = sorted({name.rsplit(".", 1)[-1] for name in linear if name.split(".")[0] not in heads})
    names += sorted({name.rsplit(".", 1)[-1] for name in stacked_weights(model)})
    if own is not None:
        return (
            f"target_modules matches only {own} of the classification head, which every method trains whole. Name layers below "
            f"the head: {', '.join(names)}."
        )
    asked = target if isinstance(target, str) else ", ".join(target)
    first = target if isinstance(target, str) else (target[0] if target else "")
    hint = suggest(first, names)
    if isinstance(target, str) and target in names:
        hint = f" A text is a regular expression over whole names; for all layers that end so write [{target}]."
    return f"target_modules {asked!r} matches no layer of the model.{hint} There are {', '.join(names)}."


def _matches(name: str, targets: str | list[str]) -> bool:
    """As peft matches: a regular expression over the whole name, or a name's last parts."""
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _taken_for_experts(model: nn.Module) -> set[str]:
    """Last parts of names that peft reads as the experts of an older transformers, whatever layer bears them."""
    kind = getattr(getattr(model, "config", None), "model_type", None)
    return set(_MOE_TARGET_MODULE_MAPPING.get(_MODEL_TO_CONVERSION_PATTERN.get(kind, ""), {}))
