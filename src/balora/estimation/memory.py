"""What a run will take, found without loading a weight: trainable parameters, steps, peak memory.

The model is built on the meta device, adapted there, and run once there: every tensor that autograd would keep is counted, for
any architecture, at no cost.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from balora.estimation.meta_device import on_meta
from balora.methods.layers.peft_lora import head_names
from balora.methods.quantization.quantize import quantizable_layers, quantized_bytes
from balora.models.adapted_model import base_model_of
from balora.models.hidden_states import HiddenStateExtractor
from balora.objective import Task

_ADAM_BYTES = 12  # gradient and two moments, float32
_TEACHER_BYTES = 4  # the initial value
_CHUNK_BYTES = 256 * 2**20  # the loss's largest buffers together


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Sizes of a run."""

    parameters: int
    trainable: int
    steps: int
    weights_gib: float
    training_gib: float
    """Trainable tensors' gradients, moments and initial values."""
    activations_gib: float | None
    """What the longest batch keeps for its backward; None where the architecture could not be run without weights."""

    @property
    def peak_gib(self) -> float:
        """Sum of the parts, a process's own size aside."""
        return self.weights_gib + self.training_gib + (self.activations_gib or 0.0)

    def lines(self) -> list[str]:
        """For people."""
        share = 100 * self.trainable / self.parameters
        activations = "unknown" if self.activations_gib is None else f"{self.activations_gib:.2f}"
        return [
            f"trainable parameters  {self.trainable:,} of {self.parameters:,} ({share:.2f} %)",
            f"optimizer steps       {self.steps:,}",
            f"peak memory           about {self.peak_gib:.2f} GiB (weights {self.weights_gib:.2f}, gradients, moments and "
            f"teacher {self.training_gib:.2f}, activations {activations})",
        ]


def estimate(
    model: nn.Module,
    task: Task,
    *,
    dtype: torch.dtype,
    batch: int,
    length: int,
    target_length: int | None = None,
    steps: int,
    checkpointing: bool = False,
    bits: int | None = None,
    double: bool = True,
) -> Estimate:
    """Estimate a run of an adapted model on the meta device.

    Args:
        model: Adapted, on the meta device.
        task: Decides whether the vocabulary's head is run.
        dtype: Of the frozen weights.
        batch: Examples per micro-batch.
        length: Tokens of the longest example.
        target_length: Of the longest response, where it goes into a decoder of its own (seq2seq).
        steps: Optimizer steps of the run.
        checkpointing: Whether activations are recomputed in the backward (``gradient_checkpointing``).
        bits: Of the quantized weights, None for none.
        double: Whether their scales are rounded too.
    """
    if checkpointing and isinstance(model, PeftModel | PreTrainedModel):
        model.gradient_checkpointing_enable()
    parameters = list(model.parameters())
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    total = sum(p.numel() for p in parameters)
    # peft keeps the adapter in float32 whatever the frozen weights are; full fine-tuning trains them as they are loaded.
    adapters = 4 if trainable < total else dtype.itemsize
    weights = (total - trainable) * dtype.itemsize + trainable * adapters
    if bits is not None:
        inner = base_model_of(model)
        for name in quantizable_layers(inner, head_names(inner)):
            layer: Any = inner.get_submodule(name)
            weights += quantized_bytes(tuple(layer.weight.shape), bits, double) - layer.weight.numel() * dtype.itemsize
    activations = _saved_bytes(model, task, batch, length, target_length or length)
    if activations is not None and task in ("generation", "seq2seq"):
        vocabulary = model.config.get_text_config().vocab_size  # type: ignore[union-attr, operator]
        activations += min(_CHUNK_BYTES, 3 * 4 * batch * (target_length or length) * vocabulary)
    return Estimate(
        parameters=total,
        trainable=trainable,
        steps=steps,
        weights_gib=weights / 2**30,
        training_gib=trainable * (_ADAM_BYTES + _TEACHER_BYTES) / 2**30,
        activations_gib=None if activations is None else activations / 2**30,
    )


def _saved_bytes(model: nn.Module, task: Task, batch: int, length: int, target_length: int) -> int | None:
    """Bytes that autograd keeps of one forward, each storage once, parameters aside."""
    own = {t.untyped_storage()._cdata for t in itertools.chain(model.parameters(), model.buffers())}
    # By storage; holding the tensor, as a freed storage's address would be given out again.
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    try:
        with on_meta(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            tokens = torch.zeros(batch, length, dtype=torch.long, device="meta")
            inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
            if task == "seq2seq":
                inputs["decoder_input_ids"] = torch.zeros(batch, target_length, dtype=torch.long, device="meta")
            if task in ("generation", "seq2seq"):
                HiddenStateExtractor(model).hidden_states(model, {**inputs, "use_cache": False})
            else:
                base = base_model_of(model)
                # Without the cache that a decoder makes by default.
                known = inspect.signature(base.forward).parameters
                model(**inputs, **({"use_cache": False} if "use_cache" in known else {}))
    except Exception:  # an estimate must not stand in the way of the run it is about
        return None
    return sum(t.untyped_storage().nbytes() for storage, t in kept.items() if storage not in own)
