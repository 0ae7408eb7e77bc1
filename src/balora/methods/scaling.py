"""A part of a trained change: W + a·ΔW in place of W + ΔW (WiSE-FT: Wortsman et al., 2022; not in the BA-LoRA paper).

A LoRA's factors stay as they are and its scaling s becomes a·s. Under a method that moved a part of the weights into the
adapter, W = W_res + s·B₀A₀, the residual becomes W - a·s·B₀A₀: the initial values still make the pre-trained model, and the
trained ones make W + a·s·(BA - B₀A₀). Every other trained tensor p becomes p₀ + a·(p - p₀).
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from balora.errors import BALoraError
from balora.methods.initial_state import stored_parameters, trainable_parameters
from balora.methods.layers.peft_lora import lora_layers
from balora.methods.layers.weight_views import frozen_parameter, weight_matrices
from balora.methods.quantization.quantized_linear import QuantizedLinear
from balora.models.adapted_model import ADAPTER, clear_weight_caches


@torch.no_grad()
def scale_change(model: nn.Module, scale: float, initial: Mapping[str, Tensor], *, residual_base: bool) -> None:
    """Give a trained model the weights W + a·ΔW, in place.

    Args:
        model: A model that `balora.adapt` prepared, with its trained values.
        scale: a, any finite number.
        initial: Values of the trained tensors before the training, by parameter name.
        residual_base: Whether the method moved a part of the weights into the adapter. Quantized residual weights become
            ordinary ones, because rounding them again would be another model.

    Raises:
        BALoraError: An initial value is missing.
    """
    if residual_base:
        for _, layer in lora_layers(model):
            _dequantize(layer, getattr(model, "dtype", torch.float32))
        current = {name: p.detach().clone() for name, p in stored_parameters(model) if ".lora_" in name}
        parameters = dict(model.named_parameters())
        for name in current:
            if name in initial:  # LoRA-FA's A never moved
                parameters[name].copy_(initial[name])
        for matrix in weight_matrices(model):
            moved_OI = matrix.scaling * (matrix.factor_b_OR.float() @ matrix.factor_a_RI.float())
            matrix.weight_OI.copy_(matrix.weight_OI.float() + (1.0 - scale) * moved_OI)
        for name, value in current.items():
            parameters[name].copy_(value)
    for layer in _lora_modules(model):
        layer.scaling[ADAPTER] *= scale
    scale_other_tensors(model, scale, initial)
    clear_weight_caches(model)


@torch.no_grad()
def scale_other_tensors(model: nn.Module, scale: float, initial: Mapping[str, Tensor]) -> None:
    """Scale the change of every trained tensor that is not a LoRA's: p₀ + a·(p - p₀)."""
    for name, parameter in trainable_parameters(model):
        if ".lora_" in name:
            continue
        if name not in initial:
            raise BALoraError(f"The value of {name} before the training is not known, so its change cannot be scaled.")
        before = initial[name].to(parameter.device, torch.float32)
        parameter.copy_(before + scale * (parameter.float() - before))


@contextlib.contextmanager
def scaled_change(
    model: nn.Module, scale: float, initial: Mapping[str, Tensor], *, residual_base: bool
) -> Iterator[None]:
    """Scale the change inside the block and restore every value exactly after it; copies stay in host memory meanwhile."""
    kept = [(layer, dict(layer.scaling), _frozen_state(layer, residual_base)) for layer in _lora_modules(model)]
    trained = {name: p.detach().to("cpu", copy=True) for name, p in trainable_parameters(model) if ".lora_" not in name}
    try:
        scale_change(model, scale, initial, residual_base=residual_base)
        yield
    finally:
        with torch.no_grad():
            for layer, scaling, frozen in kept:
                layer.scaling.update(scaling)
                if isinstance(frozen, Tensor):
                    frozen_parameter(layer).copy_(frozen)
                elif frozen is not None:
                    layer.base_layer, layer.fan_in_fan_out = frozen
            parameters = dict(model.named_parameters())
            for name, value in trained.items():
                parameters[name].copy_(value)
        clear_weight_caches(model)


def _lora_modules(model: nn.Module) -> Iterator[Any]:
    """Yield every LoRA layer, those of embeddings included."""
    for module in model.modules():
        if isinstance(module, LoraLayer) and ADAPTER in module.scaling:
            yield module


def _frozen_state(layer: Any, residual_base: bool) -> Any:
    """Return what restores the frozen weight of a layer: a copy, a quantized layer itself, or None if it will not change."""
    if not residual_base:
        return None
    if isinstance(layer.base_layer, QuantizedLinear):
        return layer.base_layer, layer.fan_in_fan_out
    return frozen_parameter(layer).detach().to("cpu", copy=True)


def _dequantize(layer: Any, dtype: torch.dtype) -> None:
    if isinstance(layer.base_layer, QuantizedLinear):
        layer.base_layer = layer.base_layer.to_linear(dtype)
        layer.fan_in_fan_out = isinstance(layer.base_layer, Conv1D)
