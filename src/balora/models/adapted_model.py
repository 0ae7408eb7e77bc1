"""Adapter name and base model of an adapted model, and evaluation without gradients."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

ADAPTER = "default"
"""Name of the adapter that balora adds to a peft model."""


def base_model_of(model: nn.Module) -> Any:
    """Return the transformers model under a peft adapter, or the model itself if it has no adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


def clear_weight_caches(model: nn.Module) -> None:
    """Forget everything computed from the weights that a later forward would reuse, although their values have changed.

    These are the casted weights of `torch.autocast` and, inside peft's `DoraCaching`, the norms and products of DoRA.
    """
    torch.clear_autocast_cache()
    for module in model.modules():
        clear = getattr(module, "_cache_clear", None)  # a method of peft's DoraLinearLayer
        if clear is not None:
            clear()


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout and gradients off inside the block, and restore each module's training mode afterwards.

    Inside `torch.autocast`, weights that were casted in the block have no gradient, so its cache is cleared afterwards.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        torch.clear_autocast_cache()
