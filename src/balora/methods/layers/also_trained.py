"""Modules and token embeddings that are trained beside a LoRA: peft's ``modules_to_save`` and ``trainable_token_indices``."""

import dataclasses
from typing import Any

from torch import nn

from balora.errors import BALoraError, suggest
from balora.methods.method import AdaptOptions


@dataclasses.dataclass(frozen=True)
class AlsoTrained:
    """Values for peft's config."""

    modules: list[str]
    """Full names."""
    tokens: list[int]


def find_also_trained(model: nn.Module, options: AdaptOptions) -> AlsoTrained:
    """Read the two options, and refuse modules and tokens that the model does not have, or that share a weight.

    A name selects the modules of this full name, or whose full name ends with a dot and this name. peft adds no LoRA in them.
    """
    found = AlsoTrained(
        list(options.extra.get("modules_to_save") or ()),
        sorted(set(options.extra.get("trainable_token_indices") or ())),
    )
    if found.modules and found.tokens and any(_is_embedding(model, name) for name in found.modules):
        raise BALoraError(
            "method.modules_to_save trains the whole embedding, so method.trainable_token_indices has no effect. Keep one."
        )
    chosen: set[str] = set()
    for wanted in found.modules:
        matching = _matching(model, wanted)
        if not matching:
            known = {
                name.rpartition(".")[2]
                for name, module in model.named_modules()
                if any(True for _ in module.parameters())
            }
            raise BALoraError(
                f"{type(model).__name__} has no module {wanted!r} (method.modules_to_save).{suggest(wanted, known)}"
            )
        chosen |= set(matching)
    _check_shared(model, chosen)
    embedding: Any = model.get_input_embeddings() if found.tokens else None  # type: ignore[operator]
    if embedding is not None and found.tokens[-1] >= embedding.weight.shape[0]:
        raise BALoraError(
            f"method.trainable_token_indices names token {found.tokens[-1]}, but the model has {embedding.weight.shape[0]:,} "
            "tokens, numbered from 0."
        )
    return dataclasses.replace(found, modules=sorted(chosen))


def _matching(model: nn.Module, wanted: str) -> list[str]:
    return [name for name, _ in model.named_modules() if name == wanted or name.endswith(f".{wanted}")]


def _is_embedding(model: nn.Module, wanted: str) -> bool:
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    return any(model.get_submodule(name) is embedding for name in _matching(model, wanted))


def _check_shared(model: nn.Module, chosen: set[str]) -> None:
    """Refuse a module that shares a weight with another one, which would keep the old values."""
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    for names in owners.values():
        inside = [name for name in names if any(name.startswith(f"{module}.") for module in chosen)]
        if inside and len(names) > 1:
            other = next((name for name in names if name not in inside), names[-1])
            raise BALoraError(
                f"{inside[0]} is the same tensor as {other}, so a trained copy of one would part them. Train single tokens of "
                "both with method.trainable_token_indices, or use method full."
            )
