"""Target modules of an adapter: layers, and stacks of expert weights, which peft takes as a separate argument."""

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping

from peft import LoraConfig
from peft.tuners.tuners_utils import _check_lora_target_modules_mamba
from peft.utils.transformers_weight_conversion import _MODEL_TO_CONVERSION_PATTERN, _MOE_TARGET_MODULE_MAPPING
from torch import nn
from torch.nn.modules.conv import _ConvNd
from transformers.pytorch_utils import Conv1D

from balora.errors import BALoraError, suggest
from balora.methods.method import AdaptOptions

ALL_LINEAR = "all-linear"
_Names = str | list[str]  # a regular expression over full names, or names (or their last parts)
_REFUSED_BY_PEFT = "peft refuses the layer, because the fused kernels of Mamba read its weight directly"
_SINGLE_OUTPUT = "the layer has a single input or output, so it has no low-rank change"
_TIED = "the layer shares its weight with another one, and this method changes the weights (method lora adapts it)"
_THREE_DIMENSIONS = "the weight has three dimensions and is no stack of experts"


@dataclasses.dataclass(frozen=True)
class Targets:
    """Selected layers, in the form of peft's arguments."""

    modules: _Names
    """peft's ``target_modules``: as the user wrote them, or full names if peft would select other layers."""
    stacks: list[str] = dataclasses.field(default_factory=list)
    """Full names of stacks of expert weights, for peft's ``target_parameters``."""
    reserved: list[str] = dataclasses.field(default_factory=list)
    """Layers of ``modules`` that peft takes for experts by their name. Written as parameters, peft adapts the layers themselves."""
    excluded: list[str] = dataclasses.field(default_factory=list)
    """Layers without an adapter whose name ends with the full name of a selected layer, which for peft is a match."""
    notices: list[str] = dataclasses.field(default_factory=list)
    """Sentences for the user about layers without an adapter."""


def find_targets(model: nn.Module, options: AdaptOptions, outside: list[str]) -> Targets:
    """Select the layers and stacks that get an adapter; the modules ``outside`` (heads) get none.

    Layers that peft or the model cannot adapt are left out, with a notice. If no layer is left, or if ``exclude_modules`` matches
    nothing, `BALoraError` says why.
    """
    targets = options.target_modules
    modules = {name: m for name, m in model.named_modules() if name and not _is_inside(name, outside)}
    stacks = [name for name in stacked_weights(model) if not _is_inside(name, outside)]
    reasons = dict(options.dead)
    if targets == ALL_LINEAR:
        output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
        selected = [name for name, layer in linear_layers(model) if name in modules and layer is not output]
        single = [name for name, layer in linear_layers(model) if name in selected and _smaller_side(layer) <= 1]
        tied = _tied_layers(model, selected) if options.changes_weights else []
        reasons = {**dict.fromkeys(tied, _TIED), **dict.fromkeys(single, _SINGLE_OUTPUT), **options.unused, **reasons}
    else:
        matching = [name for name in modules if _matches(name, targets)]
        selected = [name for name in matching if _is_adaptable(modules[name])]
        stacks = [name for name in stacks if _matches(name, targets)]
    if not selected and not stacks:
        raise BALoraError(_no_match_message(model, targets, outside))
    reasons |= dict.fromkeys((name for name in selected if _refused_by_peft(model, name)), _REFUSED_BY_PEFT)
    if options.exclude_modules:
        _check_exclusion(model, options.exclude_modules)
        selected = [name for name in selected if not _excluded(name, options.exclude_modules)]
        stacks = [name for name in stacks if not _excluded(name, options.exclude_modules)]
    if options.stored is None:
        kept = [name for name in selected if name not in reasons]
    else:
        kept = [name for name in selected if name in options.stored]
    left_out = {name: reasons[name] for name in selected if name in reasons}
    if not kept and not stacks:
        raise BALoraError(_nothing_left_message(left_out))
    if targets == ALL_LINEAR:
        left_out |= dict.fromkeys(_other_stacks(model), _THREE_DIMENSIONS)
    reserved = reserved_for_experts(model, kept)
    as_written = len(kept) == (len(selected) if targets == ALL_LINEAR else len(matching)) and not (
        stacks or reserved or options.exclude_modules
    )
    others = [] if as_written else [name for name, _ in linear_layers(model) if name not in kept]
    return Targets(
        modules=targets if as_written else kept,
        stacks=stacks,
        reserved=reserved,
        excluded=[name for name in others if any(name.endswith(f".{other}") for other in kept)],
        notices=_notices(left_out) + _unmatched(targets, selected + stacks) if options.stored is None else [],
    )


def stacked_weights(model: nn.Module) -> list[str]:
    """Return the names of weights that stack one matrix per expert, as in Mixtral, Qwen and DeepSeek in transformers 5."""
    return [name for name, is_expert in _three_dimensional(model).items() if is_expert]


def _other_stacks(model: nn.Module) -> list[str]:
    return [name for name, is_expert in _three_dimensional(model).items() if not is_expert]


def _three_dimensional(model: nn.Module) -> dict[str, bool]:
    """Return the weights with three dimensions by name, and whether they are those of experts (in XLNet they are of heads)."""
    return {
        f"{name}.{key}": "expert" in f"{name}.{key} {type(module).__name__}".lower()
        for name, module in model.named_modules()
        if not isinstance(module, _ConvNd)
        for key, parameter in module.named_parameters(recurse=False)
        if parameter.dim() == 3 and min(parameter.shape) > 1
    }


def linear_layers(model: nn.Module) -> list[tuple[str, nn.Linear | Conv1D]]:
    """Return the linear layers of a model with their names; GPT-2's Conv1D is a transposed linear layer."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]


def _matches(name: str, targets: _Names) -> bool:
    """Match as peft does: a regular expression over the full name, or the last parts of the name."""
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _smaller_side(layer: nn.Linear | Conv1D) -> int:
    """Return the smaller of inputs and outputs; a weight in 4 bits is packed, so its shape does not tell."""
    return min(layer.in_features, layer.out_features) if isinstance(layer, nn.Linear) else min(layer.weight.shape)


def _tied_layers(model: nn.Module, names: list[str]) -> list[str]:
    """Return the layers whose weight another module has too, as the shared blocks of Zamba."""
    owners = collections.Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    return [name for name in names if owners[id(model.get_submodule(name).weight)] > 1]


def _is_inside(name: str, modules: list[str]) -> bool:
    """Return whether a layer is one of the modules, or in one of them."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _excluded(name: str, exclude: _Names) -> bool:
    """Return whether a layer, or a module that contains it, is excluded."""
    parts = name.split(".")
    return any(_matches(".".join(parts[:end]), exclude) for end in range(1, len(parts) + 1))


def _check_exclusion(model: nn.Module, exclude: _Names) -> None:
    """Refuse a name or regular expression that matches nothing: what it was meant to exclude would be trained."""
    names = [name for name, _ in model.named_modules()] + stacked_weights(model)
    for pattern in [exclude] if isinstance(exclude, str) else exclude:
        if not any(_matches(name, pattern if isinstance(exclude, str) else [pattern]) for name in names):
            last = sorted({name.rpartition(".")[2] for name in names if not name.rpartition(".")[2].isdigit()} - {""})
            hint = suggest(pattern, last)
            if isinstance(exclude, str) and pattern in last:
                hint = (
                    " A string is a regular expression over full names; for all modules with this last name write "
                    f"[{pattern}]."
                )
            raise BALoraError(f"exclude_modules {pattern!r} matches no module of the model.{hint}")


def _refused_by_peft(model: nn.Module, name: str) -> bool:
    try:
        _check_lora_target_modules_mamba(LoraConfig(), model, name.rpartition(".")[2])
    except ValueError:
        return True
    return False


def reserved_for_experts(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Return the layers among ``names`` that peft treats as experts of an older transformers version, because of their last name.

    These are dense layers and shared experts of DeepSeek, GLM-4, Qwen and others.
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    reserved = _MOE_TARGET_MODULE_MAPPING.get(_MODEL_TO_CONVERSION_PATTERN.get(kind, ""), {})
    return [name for name in names if name.rpartition(".")[2] in reserved]


def _notices(left_out: Mapping[str, str]) -> list[str]:
    """Return one sentence for each reason."""
    groups: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        groups.setdefault(reason, []).append(name)
    return [
        f"{names[0]}{f' and {len(names) - 1} more get' if len(names) > 1 else ' gets'} no adapter: {reason}."
        for reason, names in groups.items()
    ]


def _unmatched(targets: _Names, selected: list[str]) -> list[str]:
    """Return a sentence about the names of a list that select no layer."""
    names = (
        [] if isinstance(targets, str) else [t for t in targets if not any(_matches(name, [t]) for name in selected)]
    )
    return [f"target_modules names {', '.join(names)}, which selects no layer of this model."] if names else []


def _is_adaptable(module: nn.Module) -> bool:
    """Return whether peft has an adapter for a kind of layer; quantized layers have names of their own."""
    known = isinstance(module, nn.Linear | Conv1D | nn.Embedding | _ConvNd | nn.MultiheadAttention)
    return known or "Linear" in type(module).__name__


def _nothing_left_message(left_out: Mapping[str, str]) -> str:
    if not left_out:
        return "exclude_modules excludes every layer that target_modules selects. Exclude fewer layers."
    name, reason = next(iter(left_out.items()))
    return (
        f"No layer that target_modules selects can be adapted. {name} gets no adapter: {reason}. Name other layers in "
        "target_modules."
    )


def _no_match_message(model: nn.Module, targets: _Names, outside: list[str]) -> str:
    """Return the error message for targets that match no layer, or only a classification head."""
    linear = [name for name, _ in linear_layers(model)]
    in_head = next((name for name in linear if _is_inside(name, outside) and _matches(name, targets)), None)
    names = sorted({name.rpartition(".")[2] for name in linear if not _is_inside(name, outside)})
    names += sorted({name.rpartition(".")[2] for name in stacked_weights(model)})
    if not names:
        return f"{type(model).__name__} has no linear layer below its head, so there is no layer to adapt. Use method 'full'."
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
