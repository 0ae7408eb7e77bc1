"""The pooled features of a sequence classifier: what its last linear layer sees, one row per sequence.

Shapes: N sequences, T positions, d pooled size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from peft.utils import ModulesToSaveWrapper
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from torch import Tensor, nn

from balora.errors import BALoraError
from balora.models.adapted_model import base_model_of

HEAD_NAMES = (*SEQ_CLS_HEAD_NAMES, "classification_head", "pre_classifier")
"""What transformers calls the parts of a classification head: peft knows the first two, BART and T5 have the third, DistilBERT
the fourth under its `classifier`."""


def final_linear(model: nn.Module) -> nn.Linear:
    """The layer that turns pooled features into scores, in its trained copy when peft keeps one.

    Raises:
        BALoraError: The model has no classification head that we know.
    """
    base = base_model_of(model)
    for name in HEAD_NAMES:
        head = getattr(base, name, None)
        if isinstance(head, ModulesToSaveWrapper):
            head = head.modules_to_save[head.active_adapters[0]]
        if isinstance(head, nn.Module):
            layers = [module for module in head.modules() if isinstance(module, nn.Linear)]
            if layers:
                return layers[-1]
    raise BALoraError(f"{type(base).__name__} has no classification head named {' or '.join(HEAD_NAMES[:3])}.")


@contextlib.contextmanager
def pooled_features(model: nn.Module, inputs: Mapping[str, Any]) -> Iterator[list[Tensor]]:
    """Catch the pooled features (N × d) of the forward that runs inside.

    Args:
        model: The unwrapped classifier.
        inputs: The batch that is about to be run, to know which position a decoder pools.

    Yields:
        A list that holds the features after the forward, on the graph.
    """
    caught: list[Tensor] = []

    def keep(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        features = given[0]
        caught.append(features if features.dim() == 2 else _last_token(features, inputs, model))

    handle = final_linear(model).register_forward_pre_hook(keep)
    try:
        yield caught
    finally:
        handle.remove()


def _last_token(features_NTd: Tensor, inputs: Mapping[str, Any], model: nn.Module) -> Tensor:
    """A decoder scores every position and keeps the last that is not padding; take the same one."""
    pad = getattr(model.config, "pad_token_id", None)  # type: ignore[union-attr]
    tokens = inputs.get("input_ids")
    if pad is None or tokens is None:
        return features_NTd[:, -1]
    positions = torch.arange(tokens.shape[-1], device=tokens.device)
    last_N = (positions * tokens.ne(pad)).argmax(-1)
    return features_NTd[torch.arange(features_NTd.shape[0], device=features_NTd.device), last_N]
