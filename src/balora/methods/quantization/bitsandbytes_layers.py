"""Layers of bitsandbytes with the same forward in training and evaluation. Import this module only to quantize a model.

bitsandbytes' own layers (0.50) do not work for training beside a teacher:

- In evaluation on the CPU, the 4-bit layer repacks its weights for bfloat16 products. It then uses the scales of wrong blocks
  if the row length is a multiple of 16 but not of 64.
- In evaluation on the CPU, the 8-bit layer rounds its inputs to 8 bits, so that teacher and student would be two models.
- The 8-bit layer does not move its scales with the model after a forward.
- Both layers round a frozen bias permanently when the input has a narrower dtype.

So the CPU product is computed by `QuantizedLinear`, and bitsandbytes' kernels run only on other devices.
Shapes: O output features, I input features.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import bitsandbytes as bnb
import torch
from bitsandbytes.nn.modules import fix_4bit_weight_quant_state_from_module
from torch import Tensor, nn

from balora.methods.quantization.quantized_linear import QuantizedLinear


class Linear4bit(QuantizedLinear, bnb.nn.Linear4bit):
    """A linear layer with a frozen weight in 4 bits."""

    bits = 4

    @classmethod
    def quantize(cls, weight_OI: Tensor, bias: nn.Parameter | None, *, double: bool) -> Linear4bit:
        """Quantize a weight to NF4 in blocks of 64, on the weight's device; with ``double``, the scales to 8 bits."""
        weight = bnb.nn.Params4bit(
            weight_OI.detach().contiguous(), requires_grad=False, quant_type="nf4", compress_statistics=double
        )
        return cls.from_quantized(weight.to(weight_OI.device), bias, weight_OI.shape)

    @classmethod
    def from_quantized(cls, weight: Any, bias: nn.Parameter | None, shape: tuple[int, ...]) -> Linear4bit:
        """Return a layer over a quantized weight, a `bitsandbytes.nn.Params4bit` of shape (O, I)."""
        rows, columns = shape
        layer = cls(columns, rows, bias=False, device="meta")
        layer.weight, layer.bias = weight, bias
        layer.quant_state = weight.quant_state
        return layer

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return the layer's output by bitsandbytes' kernel."""
        fix_4bit_weight_quant_state_from_module(self)
        return bnb.matmul_4bit(x, self.weight, bias=bias, quant_state=self.weight.quant_state)

    def dequantized(self) -> Tensor:
        """Return the weight, O × I, in the dtype before quantization."""
        fix_4bit_weight_quant_state_from_module(self)
        shape = self.weight.quant_state.shape
        state = copy.copy(self.weight.quant_state)
        state.shape = torch.Size([shape.numel()])  # as a single row, which every kernel reads correctly
        return bnb.functional.dequantize_4bit(self.weight.data, state).reshape(shape)


class Linear8bit(QuantizedLinear, bnb.nn.Linear8bitLt):
    """A linear layer with a frozen weight in 8 bits, one scale per row."""

    bits = 8
    scale_O: Tensor

    @classmethod
    def quantize(cls, weight_OI: Tensor, bias: nn.Parameter | None) -> Linear8bit:
        """Quantize a weight to 8 bits, on the weight's device."""
        codes, scale_O, _ = bnb.functional.int8_vectorwise_quant(weight_OI.detach().contiguous().half())
        return cls.from_quantized(codes, scale_O, bias)

    @classmethod
    def from_quantized(
        cls, codes_OI: Tensor, scale_O: Tensor, bias: nn.Parameter | None, threshold: float = 0.0
    ) -> Linear8bit:
        """Return a layer over a quantized weight: int8 codes, and the largest absolute value of each row.

        On a GPU, inputs above ``threshold`` are not rounded; 0 rounds all inputs.
        """
        rows, columns = codes_OI.shape
        layer = cls(columns, rows, bias=False, has_fp16_weights=False, threshold=threshold, device="meta")
        layer.weight = bnb.nn.Int8Params(codes_OI, requires_grad=False, has_fp16_weights=False)
        layer.bias, layer.scale_O = bias, scale_O.float()
        layer._update_state()
        return layer

    def _update_state(self) -> None:
        """Set the attributes in which bitsandbytes and peft look for the weight and the scales."""
        self.state.CB, self.state.SCB = self.weight.data, self.scale_O

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Linear8bit:
        super()._apply(fn, recurse)
        self.scale_O = self.scale_O.to(self.weight.device)  # the dtype stays float32
        self._update_state()
        return self

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return the layer's output by bitsandbytes' kernel."""
        self._update_state()
        return bnb.matmul(x, self.weight, bias=bias, state=self.state)

    def dequantized(self) -> Tensor:
        """Return the weight, O × I, float32."""
        return bnb.functional.int8_vectorwise_dequant(self.weight.data, self.scale_O)


def from_bitsandbytes(module: nn.Module) -> nn.Module | None:
    """Return a layer of this file that uses the memory of a layer of bitsandbytes; None for every other module."""
    if isinstance(module, QuantizedLinear):
        return None
    weight: Any = getattr(module, "weight", None)
    if isinstance(module, bnb.nn.Linear4bit) and getattr(weight, "quant_state", None) is not None:
        return Linear4bit.from_quantized(weight, module.bias, tuple(weight.quant_state.shape))
    if isinstance(module, bnb.nn.Linear8bitLt) and weight.dtype == torch.int8:
        scale_O = weight.SCB if weight.SCB is not None else module.state.SCB
        return Linear8bit.from_quantized(weight.data, scale_O, module.bias, module.state.threshold)
    return None
