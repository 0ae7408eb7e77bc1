"""Record of a new adapter's initial state, and the check that it does not change the model's function.

`adapt` checks the function once, on a few seeded tokens. The record later shows whether the pre-trained weights were lost.
"""

import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from balora.errors import BALoraError
from balora.methods.fingerprint import Fingerprint, fingerprint
from balora.methods.method import AdaptOptions
from balora.models.adapted_model import ADAPTER, evaluating

RESIDUAL_ADAPTER_MARKER = (
    "balora: write a LoRA that peft loads with `balora export RUN --to lora`, or of a model in memory with "
    "balora.export(model, initial=...)"
)
"""Value of ``init_lora_weights`` in the config of an adapter that was trained on residual weights. On the pre-trained weights
such an adapter would give wrong results without an error; peft refuses this value and shows it. It is stored on disk."""

NOTICES = "balora_notices"
"""Attribute of a model with sentences for the user about layers without an adapter."""
_ATTRIBUTE = "balora_initial_state"
# Largest root mean square of the change, relative to that of the logits. Splitting a weight in two rounds it again. A maximum
# over tokens would be too strict: in bfloat16 one token that is routed to another expert changes completely.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.05}


@dataclasses.dataclass(frozen=True)
class InitialState:
    """Method, options and initial values of a new adapter, stored as an attribute of the model."""

    method: str
    options: AdaptOptions
    residual_base: bool
    trainable: Fingerprint
    """Fingerprint of the trainable tensors' initial values."""
    notices: tuple[str, ...] = ()
    """Sentences for the user about layers without an adapter."""

    def to_dict(self) -> dict[str, Any]:
        """Return the arguments that build the adapter again, as plain values."""
        values = {name: getattr(self.options, name) for name in ("seed", "rank", "alpha", "total_steps")}
        return {"method": self.method, **values, "options": dict(self.options.extra)}


def record_initial_state(model: nn.Module, method: str, options: AdaptOptions, *, residual_base: bool) -> None:
    """Attach the record to a model whose trainable tensors have their initial values.

    If the frozen weights are residuals, mark peft's config, so that every way to save the adapter writes the marker.
    """
    if residual_base:
        model.peft_config[ADAPTER].init_lora_weights = RESIDUAL_ADAPTER_MARKER  # type: ignore[index, union-attr]
    options = dataclasses.replace(options, calibration=None)  # the function may keep the data in memory
    notices = tuple(getattr(model, NOTICES, ()))
    values = fingerprint(trainable_parameters(model))
    setattr(model, _ATTRIBUTE, InitialState(method, options, residual_base, values, notices))


def refresh_initial_state(model: nn.Module) -> None:
    """Record the current values as the initial ones, after a classification head was fitted."""
    state = initial_state_of(model)
    if state is not None:
        setattr(model, _ATTRIBUTE, dataclasses.replace(state, trainable=fingerprint(trainable_parameters(model))))


def initial_state_of(model: nn.Module) -> InitialState | None:
    """Return the record of a model; None if the model does not come from `balora.adapt`."""
    return getattr(model, _ATTRIBUTE, None)


def trainable_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the trainable parameters with their names."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def stored_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters that a checkpoint stores: the trainable ones, and frozen ones of the adapter (LoRA-FA's A)."""
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad or ".lora_" in name)


def probe_inputs(model: nn.Module, count: int = 8) -> dict[str, Tensor] | None:
    """Return seeded tokens as the inputs of a model, at most as many as it takes; None on meta or without text input."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    config: Any = getattr(model, "config", None)
    vocabulary = getattr(config, "vocab_size", None)
    if vocabulary is None and hasattr(config, "get_text_config"):
        vocabulary = getattr(config.get_text_config(), "vocab_size", None)
    if device.type == "meta" or vocabulary is None or "input_ids" not in inspect.signature(model.forward).parameters:
        return None
    if count > 8 and hasattr(config, "get_text_config"):
        positions = getattr(config.get_text_config(), "max_position_embeddings", None) or count
        count = max(8, min(count, positions - 4))  # RoBERTa's positions begin at 2
    tokens = torch.randint(vocabulary, (1, count), generator=torch.Generator().manual_seed(0)).to(device)
    end = getattr(config, "eos_token_id", None)
    if isinstance(end, int) and 0 <= end < vocabulary:
        tokens[:, -1] = end  # the position that BART's and T5's classifiers pool
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    if config.is_encoder_decoder and not type(model).__name__.endswith("ForSequenceClassification"):
        inputs["decoder_input_ids"] = tokens
    return inputs


def output_logits(outputs: Any) -> Tensor:
    """Return a model's logits; without a head, its hidden states."""
    logits = getattr(outputs, "logits", None)
    return outputs[0] if logits is None else logits  # type: ignore[no-any-return]


def probe_logits(model: nn.Module) -> Tensor | None:
    """Return float32 logits (without a head: hidden states) of the tokens of `probe_inputs`; None without such tokens."""
    inputs = probe_inputs(model)
    if inputs is None:
        return None
    with evaluating(model):
        return output_logits(model(**inputs)).float()


def check_same_function(before: Tensor | None, model: nn.Module, method: str) -> None:
    """Refuse an adapted model if its logits differ from those of the pre-trained model (``before``) beyond rounding."""
    after = probe_logits(model) if before is not None else None
    if before is None or after is None:
        return
    dtype = min((p.dtype for p in model.parameters() if p.is_floating_point()), key=lambda d: d.itemsize)
    size, change = (x.square().mean().sqrt() for x in (before, after - before))
    relative = float(change / size.clamp_min(1e-3))
    if not relative <= _TOLERANCE.get(dtype, 0.5):
        raise BALoraError(
            f"Method {method!r} changed the function of the pre-trained model before training: its logits differ by "
            f"{relative:.3g} of their root mean square. Two target layers may share one weight, or the weights may hold NaN; "
            "adapt a freshly loaded model."
        )
