"""Adapter name and base model of an adapted model, and evaluation without gradients."""

from __future__ import annotations

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


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout and gradients off inside the block, and restore each module's training mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
