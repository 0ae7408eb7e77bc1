"""Restore a model to its earlier state if a block that changes it in place fails."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def restored_on_failure(model: nn.Module, written: Iterable[Tensor] = ()) -> Iterator[None]:
    """Restore the model if the block raises anything, also an interrupt: layers, attributes, hooks, modes and gradient flags.

    The values of tensors are restored only for ``written``, which are copied: a copy of all weights would double the memory.
    """
    config = getattr(model, "config", None)
    attributes = [_attributes(owner) for owner in [*model.modules(), *([] if config is None else [config])]]
    flags = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    values = [(tensor, tensor.detach().clone()) for tensor in written]
    try:
        yield
    except BaseException:
        for owner, kind, content, dictionaries in attributes:
            if type(owner) is not kind:  # torch's parametrizations replace the class of a module
                owner.__class__ = kind
            _replace(vars(owner), content)
            for dictionary, entries in dictionaries:
                _replace(dictionary, entries)
        for parameter, flag, gradient in flags:
            parameter.requires_grad_(flag)
            parameter.grad = gradient
        with torch.no_grad():
            for tensor, value in values:
                tensor.copy_(value)
        raise


def _attributes(owner: Any) -> tuple[Any, type, dict[str, Any], list[tuple[dict[Any, Any], dict[Any, Any]]]]:
    """Return an object, its class, its attributes, and its dictionaries (of submodules, parameters, hooks) with their entries."""
    content = dict(vars(owner))
    return owner, type(owner), content, [(value, dict(value)) for value in content.values() if isinstance(value, dict)]


def _replace(dictionary: dict[Any, Any], entries: dict[Any, Any]) -> None:
    """Give a dictionary other entries; it stays the same object, because handles of hooks refer to it."""
    dictionary.clear()
    dictionary.update(entries)
