"""Estimate trainable parameters, steps and peak memory of a run without loading a weight.

The model is built, adapted and run once on the meta device, and every tensor that autograd would keep is counted. This works
for any architecture and needs no memory.
"""

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
    """Number of parameters, the adapter's included."""
    trainable: int
    """Number of trainable parameters."""
    steps: int
    """Number of optimizer steps."""
    weights_gib: float
    training_gib: float
    """Gradients, moments and initial values of the trainable tensors."""
    activations_gib: float | None
    """Tensors that the longest batch keeps for the backward; None if the architecture cannot run without weights."""

    @property
    def peak_gib(self) -> float:
        """Sum of the parts, without the size of the process itself."""
        return self.weights_gib + self.training_gib + (self.activations_gib or 0.0)

    def lines(self) -> list[str]:
        """Return the estimate as lines of text."""
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
    batch_size: int,
    length: int,
    target_length: int | None = None,
    steps: int,
    gradient_checkpointing: bool = False,
    bits: int | None = None,
    double_quantization: bool = True,
) -> Estimate:
    """Estimate a run of an adapted ``model`` on the meta device, with micro-batches of ``batch_size`` examples.

    ``dtype`` is that of the frozen weights, and ``bits`` their number of bits if they are quantized. ``length`` and
    ``target_length`` (seq2seq) are the tokens of the longest example and of the longest response.
    """
    if gradient_checkpointing and isinstance(model, PeftModel | PreTrainedModel):
        model.gradient_checkpointing_enable()
    parameters = list(model.parameters())
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    total = sum(p.numel() for p in parameters)
    # peft keeps the adapter in float32 for any dtype of the frozen weights. Full fine-tuning trains the dtype that was loaded.
    trainable_bytes = 4 if trainable < total else dtype.itemsize
    weights = (total - trainable) * dtype.itemsize + trainable * trainable_bytes
    if bits is not None:
        inner = base_model_of(model)
        for name in quantizable_layers(inner, head_names(inner)):
            layer: Any = inner.get_submodule(name)
            quantized = quantized_bytes(tuple(layer.weight.shape), bits, double_quantization)
            weights += quantized - layer.weight.numel() * dtype.itemsize
    target_length = target_length or length
    activations = _saved_bytes(model, task, batch_size, length, target_length)
    if activations is not None and task in ("generation", "seq2seq"):
        vocabulary = model.config.get_text_config().vocab_size  # type: ignore[union-attr, operator]
        activations += min(_CHUNK_BYTES, 3 * 4 * batch_size * target_length * vocabulary)
    return Estimate(
        parameters=total,
        trainable=trainable,
        steps=steps,
        weights_gib=weights / 2**30,
        training_gib=trainable * (_ADAM_BYTES + _TEACHER_BYTES) / 2**30,
        activations_gib=None if activations is None else activations / 2**30,
    )


def _saved_bytes(model: nn.Module, task: Task, batch_size: int, length: int, target_length: int) -> int | None:
    """Count the bytes that autograd keeps of one forward: each storage once, without the parameters."""
    own = {t.untyped_storage()._cdata for t in itertools.chain(model.parameters(), model.buffers())}
    # A reference to each tensor keeps its storage alive, so that no later storage gets the same address.
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    try:
        with on_meta(model), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            tokens = torch.zeros(batch_size, length, dtype=torch.long, device="meta")
            inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
            if task == "seq2seq":
                inputs["decoder_input_ids"] = torch.zeros(batch_size, target_length, dtype=torch.long, device="meta")
            if task in ("generation", "seq2seq"):
                HiddenStateExtractor(model).hidden_states(model, {**inputs, "use_cache": False})
            else:
                base = base_model_of(model)
                # A decoder would make a cache by default.
                known = inspect.signature(base.forward).parameters
                model(**inputs, **({"use_cache": False} if "use_cache" in known else {}))
    except Exception:  # a failed estimate must not prevent the run
        return None
    return sum(t.untyped_storage().nbytes() for storage, t in saved.items() if storage not in own)
