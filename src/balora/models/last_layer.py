"""Last decoder layer at the target positions alone: nobody reads its output at the others.

Keys and values of the last layer are needed at every position, because the targets attend to them. Its queries, the projection
of the attention's output and its MLP are needed at the targets alone. They work on each position by itself, so computing them
for the targets alone gives the same numbers up to rounding, and the same gradients.
Shapes: B sequences, T positions, M targets, d features.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from balora.models.adapted_model import base_model_of
from balora.models.fsdp import is_sharded

_ATTENTION = ("self_attn", "attention", "attn")
_MLP = ("mlp", "feed_forward")
_LARGEST_SHARE = 0.8
"""Share of targets above which picking them costs about what it saves."""


class LastLayer:
    """Parts of a decoder's last layer that work on each position by itself; none if the model has no such layer.

    Args:
        model: Causal language model, with or without a peft adapter.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.parts = _position_wise_parts(model)

    def usable(self, model: Any) -> bool:
        """Return whether the parts may be left out for a forward of ``model``, which may wrap the model.

        Not under activation checkpointing, whose second forward would see other shapes, and not with FSDP2 or torch.compile,
        with which it has not been tried.
        """
        if not self.parts or hasattr(model, "_orig_mod") or is_sharded(self.model):
            return False
        checkpoints = any(getattr(module, "gradient_checkpointing", False) is True for module in self.model.modules())
        return not (checkpoints and self.model.training)

    @contextlib.contextmanager
    def only_at(self, mask_BT: Tensor) -> Iterator[None]:
        """Run the parts at the positions of a mask inside the block; at the others the layer's output has no meaning."""
        positions_M = mask_BT.reshape(-1).nonzero()[:, 0]
        if len(positions_M) > _LARGEST_SHARE * mask_BT.numel():
            yield
            return
        previous = [(part, part.__dict__.get("forward")) for part in self.parts]
        try:
            for part in self.parts:
                part.forward = _at(part.forward, positions_M, mask_BT.shape)  # type: ignore[method-assign]
            yield
        finally:
            for part, forward in previous:
                if forward is None:
                    part.__dict__.pop("forward", None)
                else:  # accelerate sets one when a model is spread over devices
                    part.forward = forward  # type: ignore[method-assign]


def _at(forward: Any, positions_M: Tensor, shape: torch.Size) -> Any:
    def run(hidden_BTd: Tensor, *args: Any, **kwargs: Any) -> Any:
        # Prompt tuning has positions before those of the mask.
        if hidden_BTd.shape[:-1] != shape or not len(positions_M):
            return forward(hidden_BTd, *args, **kwargs)
        picked_Md = hidden_BTd.flatten(0, 1)[positions_M.to(hidden_BTd.device)]
        found_Md = forward(picked_Md[None], *args, **kwargs)[0]
        zeros = found_Md.new_zeros(shape.numel(), found_Md.shape[-1])
        return zeros.index_copy(0, positions_M.to(found_Md.device), found_Md).unflatten(0, tuple(shape))

    return run


def _position_wise_parts(model: nn.Module) -> list[nn.Module]:
    base = base_model_of(model)
    config = base.config.get_text_config()
    count = getattr(config, "num_hidden_layers", None)
    # A load-balancing loss counts the tokens that a router sees.
    experts = any("expert" in name for name, _ in base.named_modules())
    if base.config.is_encoder_decoder or experts:
        return []
    lists = [module for module in base.modules() if isinstance(module, nn.ModuleList) and len(module) == count]
    if len(lists) != 1:
        return []
    children: Mapping[str, nn.Module] = dict(lists[0][-1].named_children())
    attention = next((children[name] for name in _ATTENTION if name in children), None)
    parts = [] if attention is None else [m for n, m in attention.named_children() if n in ("q_proj", "o_proj")]
    return parts + [children[name] for name in _MLP if name in children]
