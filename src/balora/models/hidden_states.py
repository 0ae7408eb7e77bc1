"""Hidden states of a language model at the input of its output layer, and the output layer as a `LinearHead`.

The losses apply the head in chunks, so that no tensor of shape tokens × vocabulary exists. To get the hidden states, the
model runs as usual, with all its wrappers (DDP, peft), while its output layer only records its input. No model family needs
special code.
Shapes: B sequences, T positions, d hidden size, V vocabulary, M valid tokens.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from balora.errors import BALoraError
from balora.models.adapted_model import ADAPTER, base_model_of, evaluating
from balora.models.fsdp import unshard_module
from balora.models.lm_head import LinearHead

SAMPLE_POSITIONS = 64
"""Number of positions at which logits are compared. The logits of a full batch would be the largest tensor of the run."""


def _no_position(hidden_BTd: Tensor) -> Tensor:
    return hidden_BTd[..., :0, :]


def _first_positions(hidden_BTd: Tensor) -> Tensor:
    return hidden_BTd.reshape(1, -1, hidden_BTd.shape[-1])[:, :SAMPLE_POSITIONS]


class HiddenStateExtractor:
    """Run a language model (with or without a peft adapter, not wrapped by DDP or the like) without its output layer."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        output_layer = model.get_output_embeddings()  # type: ignore[operator]
        if output_layer is None:
            raise BALoraError(f"{type(model).__name__} has no output layer, so it cannot be trained to generate.")
        self.output_layer: nn.Module = output_layer

    def hidden_states(self, model: Callable[..., Any], inputs: Mapping[str, Any]) -> tuple[Tensor, Any]:
        """Run the model, or a wrapper of it; return the hidden states B × T × d and the outputs with empty logits."""
        hidden, _, outputs = self._run(model, inputs)
        return hidden, outputs

    def logits_at(self, model: Callable[..., Any], inputs: Mapping[str, Any], mask_BT: Tensor) -> Tensor:
        """Return the model's logits at the first `SAMPLE_POSITIONS` positions of a mask, M × V.

        No other logits are computed, except for a model without an output layer of its own.
        """

        def first_targets(states_BTd: Tensor) -> Tensor:
            return without_virtual_tokens(states_BTd, mask_BT)[mask_BT][:SAMPLE_POSITIONS]

        if isinstance(
            self.output_layer, nn.Embedding
        ):  # FSMT multiplies by its embeddings and never runs them as a layer
            return first_targets(model(**inputs).logits)
        _, _, outputs = self._run(model, inputs, lambda hidden_BTd: first_targets(hidden_BTd)[None])
        logits_MV: Tensor = outputs.logits[0]
        return logits_MV

    def head(self) -> LinearHead | None:
        """Return the current output layer as a `LinearHead`; None if it is not a known linear map.

        Under FSDP2 the layer stays gathered until its backward, because the loss reads its weight after the forward.
        """
        unshard_module(self.model, self.output_layer)
        weight, bias = _weight_and_bias(self.output_layer)
        if weight is None:
            return None
        base = base_model_of(self.model)
        config = base.config.get_text_config()
        offset = getattr(base, "final_logits_bias", None)
        if isinstance(offset, Tensor) and bool(offset.any()):
            bias = offset.reshape(-1) if bias is None else bias + offset.reshape(-1)
        return LinearHead(weight, bias, _scale(config), getattr(config, "final_logit_softcapping", None) or None)

    def head_matches(self, model: nn.Module, inputs: Mapping[str, Any], tolerance: float = 1e-3) -> bool:
        """Return whether `head` gives the model's own logits, tested on a batch.

        A model family may process its logits in an unknown way. Training then needs the model's own logits.
        """
        head = self.head()
        if head is None:
            return False
        with evaluating(self.model):
            hidden, dtype, outputs = self._run(model, inputs, _first_positions)
            expected = outputs.logits.float()
            found = head.logits(_first_positions(hidden).to(head.weight_VD.dtype))
        if expected.shape != found.shape:
            return False
        # Under autocast the dtype of the logits can be narrower than that of the head's weight.
        narrow = min(head.weight_VD.dtype.itemsize, dtype.itemsize) < 4
        slack = 20 * tolerance if narrow else tolerance
        return bool((expected - found).abs().max() <= slack * expected.abs().max().clamp_min(1.0))

    def _run(
        self, model: Callable[..., Any], inputs: Mapping[str, Any], pick: Callable[[Tensor], Tensor] = _no_position
    ) -> tuple[Tensor, torch.dtype, Any]:
        """Run a model with logits only at the positions that ``pick`` returns.

        Returns:
            (input of the output layer, dtype of the logits, the model's outputs).
        """
        recorded: list[tuple[Tensor, torch.dtype]] = []
        layer = self.output_layer
        # accelerate sets its own forward on the object when a model is spread over devices. Restore it afterwards.
        previous = layer.__dict__.get("forward")
        original = layer.forward

        def record(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            # Run the layer even for zero positions: later steps (bias, cap, scale) get a valid shape, and DDP finds the layer's
            # parameters in the graph of the outputs.
            logits: Tensor = original(pick(hidden), *args, **kwargs)
            recorded.append((hidden, logits.dtype))
            return logits

        layer.forward = record  # type: ignore[method-assign]
        try:
            outputs = model(**inputs)
        finally:
            if previous is None:
                del layer.forward
            else:
                layer.forward = previous  # type: ignore[method-assign]
        assert len(recorded) == 1, "the output layer ran once"
        return *recorded[0], outputs


def valid_targets(labels_BT: Tensor, *, shift: bool) -> tuple[Tensor, Tensor]:
    """Return the mask (B × T) of the positions that predict a target, and the M targets in order; −100 marks no target.

    Use ``shift`` for causal models, which predict the next token; the labels of encoder-decoders are already shifted.
    """
    if shift:
        labels_BT = nn.functional.pad(labels_BT[:, 1:], (0, 1), value=-100)
    mask_BT = labels_BT.ne(-100)
    return mask_BT, labels_BT[mask_BT]


def without_virtual_tokens(states_BTd: Tensor, mask_BT: Tensor) -> Tensor:
    """Return the states at the positions of the batch's own tokens; prompt tuning puts virtual tokens before them."""
    return states_BTd[:, states_BTd.shape[1] - mask_BT.shape[1] :]


def _scale(config: Any) -> float:
    """Return the factor of the logits: Cohere's logit_scale, one over Granite's logits_scaling."""
    if getattr(config, "logit_scale", None):
        return float(config.logit_scale)
    if getattr(config, "logits_scaling", None):
        return 1.0 / float(config.logits_scaling)
    return 1.0


def _weight_and_bias(module: nn.Module) -> tuple[Tensor | None, Tensor | None]:
    """Return weight (V × d) and bias of an output layer: ordinary, a trained copy of peft, or with a LoRA without dropout.

    If the adapter is disabled, they are those of the layer under it.
    """
    if isinstance(module, ModulesToSaveWrapper):
        disabled = module.disable_adapters
        module = module.original_module if disabled else module.modules_to_save[module.active_adapters[0]]
    if isinstance(module, LoraLayer) and module.disable_adapters and not module.merged:
        module = module.get_base_layer()
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
        # Add in the adapter's float32: in a narrower dtype, rounding the sum would remove small updates.
        weight: Tensor = base.weight + module.get_delta_weight(ADAPTER)  # type: ignore[operator]
        return weight, None if base.bias is None else base.bias.to(weight.dtype)
    if isinstance(module, nn.Linear) and module.weight.is_floating_point():
        return module.weight, module.bias
    return None, None
