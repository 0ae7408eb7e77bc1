"""What is remembered of a fresh adapter: enough to notice later that the pre-trained model has been lost.

Every method starts as the identity change. `adapt` proves it once, on a few seeded tokens, and leaves this record.
"""

from __future__ import annotations

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

GUARD = (
    "balora: write a LoRA that peft loads with `balora export RUN --to lora`, or of a model in memory with "
    "balora.export(model, initial=...)"
)
"""Stands as init_lora_weights in a raw adapter's config. Loaded onto the pre-trained weights, factors that were trained on
residual ones would be silently wrong; peft refuses this word by quoting it."""

_ATTRIBUTE = "balora_start"
# How far the logits may move (root mean square, relative to theirs) when the weights are split in two and rounded again. Not
# the furthest of them: in bfloat16 one token that is sent to another expert moves by more than its size.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.05}


@dataclasses.dataclass(frozen=True)
class Start:
    """A fresh adapter's origin, kept on the model as an attribute."""

    method: str
    options: AdaptOptions
    """What it was told."""
    residual_base: bool
    trainable: Fingerprint
    """Of the trainable tensors at their initial values."""

    def facts(self) -> dict[str, Any]:
        """What building the adapter again takes, as plain values."""
        o = self.options
        return {
            "method": self.method,
            "seed": o.seed,
            "rank": o.rank,
            "alpha": o.alpha,
            "total_steps": o.total_steps,
            "options": dict(o.extra),
        }


def store_initial_state(model: nn.Module, method: str, options: AdaptOptions, *, residual_base: bool) -> None:
    """Attach the record to a model whose trainable tensors are at their initial values.

    Where the start moved the frozen weights, peft's config is given the guard here, so that whoever writes the adapter
    writes it too, peft's own save_pretrained among them.
    """
    if residual_base:
        model.peft_config[ADAPTER].init_lora_weights = GUARD  # type: ignore[index, union-attr]
    options = dataclasses.replace(options, calibration=None)  # it may hold on to the data
    setattr(model, _ATTRIBUTE, Start(method, options, residual_base, fingerprint(trainable(model))))


def refresh_initial_state(model: nn.Module) -> None:
    """Take the trainable tensors as they are now for their initial values (a head that was just fitted)."""
    start = initial_state_of(model)
    if start is not None:
        setattr(model, _ATTRIBUTE, dataclasses.replace(start, trainable=fingerprint(trainable(model))))


def initial_state_of(model: nn.Module) -> Start | None:
    """The record, or None for a model that `balora.adapt` did not make."""
    return getattr(model, _ATTRIBUTE, None)


def trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and tensors that the optimizer would move."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def own_tensors(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """What learns, and the adapter's tensors that do not (LoRA-FA's A): all that the pre-trained model has not."""
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad or ".lora_" in name)


def probe_logits(model: nn.Module) -> Tensor | None:
    """The model's logits on eight seeded tokens, in float32; None where there is nothing to run (meta device, no text input)."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    config = getattr(model, "config", None)
    vocabulary = getattr(config, "vocab_size", None)
    if device.type == "meta" or vocabulary is None or "input_ids" not in inspect.signature(model.forward).parameters:
        return None
    tokens = torch.randint(vocabulary, (1, 8), generator=torch.Generator().manual_seed(0)).to(device)
    end = getattr(config, "eos_token_id", None)
    if isinstance(end, int) and 0 <= end < vocabulary:
        tokens[:, -1] = end  # where BART's and T5's classifiers read
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    if config.is_encoder_decoder and not type(model).__name__.endswith("ForSequenceClassification"):  # type: ignore[union-attr]
        inputs["decoder_input_ids"] = tokens
    with evaluating(model):
        outputs = model(**inputs)
        logits = getattr(outputs, "logits", None)
        return (outputs[0] if logits is None else logits).float()  # a model without a head has hidden states


def check_identity(before: Tensor | None, model: nn.Module, method: str) -> None:
    """Refuse an adapted model whose function is no longer the pre-trained one's.

    Raises:
        BALoraError: The logits on the probe moved by more than rounding explains.
    """
    after = probe_logits(model) if before is not None else None
    if before is None or after is None:
        return
    dtype = min((p.dtype for p in model.parameters() if p.is_floating_point()), key=lambda d: d.itemsize)
    size, change = (x.square().mean().sqrt() for x in (before, after - before))
    moved = float(change / size.clamp_min(1e-3))
    if not moved <= _TOLERANCE.get(dtype, 0.5):
        raise BALoraError(
            f"Method {method!r} changed the pre-trained model's function at its start: its logits moved by {moved:.3g} of "
            "their usual size. Two target layers may share one weight, or the weights may hold NaN; adapt a freshly loaded model."
        )
