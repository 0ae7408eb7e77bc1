"""Classification heads: the last linear layer, and the pooled features that enter it.

Shapes: N sequences, T positions, d pooled size.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from peft.utils import ModulesToSaveWrapper
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from torch import Tensor, nn

from balora.errors import BALoraError
from balora.models.adapted_model import base_model_of

HEAD_NAMES = (*SEQ_CLS_HEAD_NAMES, "classification_head", "pre_classifier", "logits_proj", "sequence_summary")
"""Names of the modules of a classification head in transformers. peft knows the first two; BART and T5 use the third,
DistilBERT the fourth in addition to `classifier`, XLNet the last two, XLM and FlauBERT the last."""


def final_linear(model: nn.Module) -> nn.Linear:
    """Return the layer that computes scores from pooled features: peft's trained copy of it, if there is one and it is on."""
    base = base_model_of(model)
    for name in HEAD_NAMES:
        head = getattr(base, name, None)
        if isinstance(head, ModulesToSaveWrapper):
            head = head.original_module if head.disable_adapters else head.modules_to_save[head.active_adapters[0]]
        if isinstance(head, nn.Module):
            layers = [module for module in head.modules() if isinstance(module, nn.Linear)]
            if layers:
                return layers[-1]
    raise BALoraError(f"{type(base).__name__} has no classification head named {' or '.join(HEAD_NAMES[:3])}.")


def padding_side(model: nn.Module) -> str:
    """Return the side on which the batches of a classifier are padded: XLNet reads the last position, so its left side."""
    base = base_model_of(model)
    reads_last = hasattr(base, "sequence_summary") and getattr(base.config, "summary_type", None) == "last"
    return "left" if reads_last else "right"


@contextlib.contextmanager
def pooled_features(model: nn.Module, inputs: Mapping[str, Any]) -> Iterator[list[Tensor]]:
    """Yield a list that contains the pooled features (N × d, on the graph) after a forward in the block.

    ``inputs`` is the batch of that forward, because a decoder pools the last token without padding.
    """
    recorded: list[Tensor] = []

    def record(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        features = args[0]
        recorded.append(features if features.dim() == 2 else _last_token(features, inputs, model))

    handle = final_linear(model).register_forward_pre_hook(record)
    try:
        yield recorded
    finally:
        handle.remove()


def _last_token(features_NTd: Tensor, inputs: Mapping[str, Any], model: nn.Module) -> Tensor:
    """Return the features at the last position without padding, as transformers' decoder classifiers do."""
    pad = getattr(model.config, "pad_token_id", None)  # type: ignore[union-attr]
    tokens = inputs.get("input_ids")
    if tokens is not None:  # without the virtual tokens that prompt tuning puts before the text
        features_NTd = features_NTd[:, features_NTd.shape[1] - tokens.shape[1] :]
    if pad is None or tokens is None:
        return features_NTd[:, -1]
    positions = torch.arange(tokens.shape[-1], device=tokens.device)
    last_N = (positions * tokens.ne(pad)).argmax(-1)
    return features_NTd[torch.arange(features_NTd.shape[0], device=features_NTd.device), last_N]
