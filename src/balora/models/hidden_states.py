"""The model's forward without its head: hidden states at the head's door, and what the head would do to them.

The head is met once, in `balora.losses`. To get there the model runs as always, through whatever wraps it (DDP, peft),
while its output layer only hands over what it was given. No family needs code of its own, and nothing of shape tokens ×
vocabulary is made.
Shapes: B sequences, T positions, d hidden size, V vocabulary, M valid tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from balora.errors import BALoraError
from balora.models.adapted_model import ADAPTER, base_model_of, evaluating
from balora.models.fsdp import gather
from balora.models.lm_head import LinearHead

SAMPLE = 64
"""Positions at which a head is tried and a start compared: over a whole batch the logits would be the largest tensor of the run."""


def _no_position(hidden_BTd: Tensor) -> Tensor:
    return hidden_BTd[..., :0, :]


def _first_positions(hidden_BTd: Tensor) -> Tensor:
    return hidden_BTd.reshape(1, -1, hidden_BTd.shape[-1])[:, :SAMPLE]


class HeadlessForward:
    """Runs a language model up to its head.

    Args:
        model: The unwrapped model (peft or not) whose head is to be skipped.

    Raises:
        BALoraError: The model has no output layer.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        head = model.get_output_embeddings()  # type: ignore[operator]
        if head is None:
            raise BALoraError(f"{type(model).__name__} has no output layer, so it cannot be trained to generate.")
        self.module: nn.Module = head

    def hidden_states(self, model: Callable[..., Any], inputs: Mapping[str, Any]) -> tuple[Tensor, Any]:
        """Call ``model`` (the possibly wrapped one) and catch what its head was given.

        Returns:
            (hidden states B × T × d, the model's outputs with empty logits).
        """
        hidden, _, outputs = self._run(model, inputs)
        return hidden, outputs

    def logits_at(self, model: Callable[..., Any], inputs: Mapping[str, Any], mask_BT: Tensor) -> Tensor:
        """The model's own logits at the first `SAMPLE` positions of a mask, M × V: no more of them are made."""
        _, _, outputs = self._run(model, inputs, lambda hidden_BTd: hidden_BTd[mask_BT][:SAMPLE][None])
        logits_MV: Tensor = outputs.logits[0]
        return logits_MV

    def head(self) -> LinearHead | None:
        """The head as it is now, or None when it is not a linear map we know how to write down.

        Under FSDP2 it is gathered, and stays so until the backward has been through it: the loss reads it after the forward.
        """
        gather(self.model, self.module)
        weight, bias = _linear(self.module)
        if weight is None:
            return None
        base = _innermost(self.model)
        config = base.config.get_text_config()  # type: ignore[union-attr, operator]
        offset = getattr(base, "final_logits_bias", None)
        if isinstance(offset, Tensor) and bool(offset.any()):
            bias = offset.reshape(-1) if bias is None else bias + offset.reshape(-1)
        return LinearHead(weight, bias, _scale(config), getattr(config, "final_logit_softcapping", None) or None)

    def agrees(self, model: nn.Module, inputs: Mapping[str, Any], tolerance: float = 1e-3) -> bool:
        """Whether the written-down head gives the model's own logits, tried on real inputs.

        Some family may do to its logits what nobody here has heard of; then the plain path must be taken.
        """
        head = self.head()
        if head is None:
            return False
        with evaluating(self.model):
            hidden, given, outputs = self._run(model, inputs, _first_positions)
            expected = outputs.logits.float()
            found = head.logits(_first_positions(hidden).to(head.weight_VD.dtype))
        if expected.shape != found.shape:
            return False
        # Under autocast the head's weights are wider than the logits that it makes of them.
        narrow = any(dtype.itemsize < 4 for dtype in (head.weight_VD.dtype, given))
        slack = 20 * tolerance if narrow else tolerance
        return bool((expected - found).abs().max() <= slack * expected.abs().max().clamp_min(1.0))

    def _run(
        self, model: Callable[..., Any], inputs: Mapping[str, Any], pick: Callable[[Tensor], Tensor] = _no_position
    ) -> tuple[Tensor, torch.dtype, Any]:
        with self._caught(pick) as caught:
            outputs = model(**inputs)
        assert len(caught) == 1, "the head ran once"
        return *caught[0], outputs

    @contextlib.contextmanager
    def _caught(self, pick: Callable[[Tensor], Tensor]) -> Iterator[list[tuple[Tensor, torch.dtype]]]:
        """Inside, the head keeps what it is given, and answers for the picked positions alone."""
        caught: list[tuple[Tensor, torch.dtype]] = []
        module = self.module
        # A hook of accelerate's (a model spread over devices) stands here as an attribute of the object; it stays.
        placed = module.__dict__.get("forward")
        answer = module.forward

        def hand_over(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            # The true head, even over no position: nothing large, a shape that every later step (bias, cap, scale) takes,
            # and a graph. DDP looks for the parameters that a step uses in the graph of the outputs.
            logits: Tensor = answer(pick(hidden), *args, **kwargs)
            caught.append((hidden, logits.dtype))
            return logits

        module.forward = hand_over  # type: ignore[method-assign]
        try:
            yield caught
        finally:
            if placed is None:
                del module.forward
            else:
                module.forward = placed  # type: ignore[method-assign]


def valid_targets(labels_BT: Tensor, *, shift: bool) -> tuple[Tensor, Tensor]:
    """Where the next token is a target, and which one (METHOD 6.6).

    Args:
        labels_BT: −100 where nothing is to be learnt.
        shift: Causal models predict the token after; encoder-decoders have labels already in place.

    Returns:
        (mask B × T over the hidden states, labels M of the positions it keeps, in order).
    """
    mask_BT = labels_BT.ne(-100)
    if not shift:
        return mask_BT, labels_BT[mask_BT]
    mask_BT = torch.zeros_like(mask_BT).index_copy_(
        1, torch.arange(labels_BT.shape[1] - 1, device=labels_BT.device), mask_BT[:, 1:]
    )
    return mask_BT, labels_BT.roll(-1, dims=1)[mask_BT]


def _innermost(model: nn.Module) -> nn.Module:
    return base_model_of(model)


def _scale(config: Any) -> float:
    """What the logits are multiplied with: Cohere's logit_scale, one over Granite's logits_scaling."""
    if getattr(config, "logit_scale", None):
        return float(config.logit_scale)
    if getattr(config, "logits_scaling", None):
        return 1.0 / float(config.logits_scaling)
    return 1.0


def _linear(module: nn.Module) -> tuple[Tensor | None, Tensor | None]:
    """Weight (V × d) and bias of an output layer: plain, trained whole by peft, or carrying a LoRA without dropout."""
    if isinstance(module, ModulesToSaveWrapper):
        module = module.modules_to_save[module.active_adapters[0]]
    if isinstance(module, LoraLayer):
        base = module.get_base_layer()
        simple = (
            isinstance(base, nn.Linear)
            and module.active_adapters == [ADAPTER]
            and not module.lora_variant
            and not module.merged
            and isinstance(module.lora_dropout[ADAPTER], nn.Identity)
            and not module.disable_adapters
        )
        if not simple:
            return None, None
        # In the adapter's float32 where the base is narrower: rounding the sum would swallow small steps.
        weight: Tensor = base.weight + module.get_delta_weight(ADAPTER)  # type: ignore[operator]
        return weight, None if base.bias is None else base.bias.to(weight.dtype)
    if isinstance(module, nn.Linear) and module.weight.is_floating_point():
        return module.weight, module.bias
    return None, None
