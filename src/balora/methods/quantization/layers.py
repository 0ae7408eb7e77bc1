"""bitsandbytes' layers with a forward that is the same in training and evaluation. Imported only where something is quantized.

Their own (0.50) do not go with training beside a teacher. On the CPU, the 4-bit one repacks its weights in evaluation, to be
multiplied in bfloat16, where the processor can, and takes the scales of other blocks where a row is a multiple of 16 but not
of 64; the 8-bit one rounds its inputs to 8 bits in evaluation alone, so that teacher and student would be two models. The
latter also leaves its scales behind when a model is moved after a forward, and both round a frozen bias for good when they
meet a narrower input. So on the CPU the product is taken here, and elsewhere by bitsandbytes.
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

from balora.methods.quantization.quantize import Quantized
from balora.models.precision import autocast_dtype


class Linear4bit(Quantized, bnb.nn.Linear4bit):
    """A frozen weight in 4 bits."""

    bits = 4

    @classmethod
    def holding(cls, weight_OI: Tensor, bias: nn.Parameter | None, *, double: bool) -> Linear4bit:
        """Round a weight to NF4, block by block of 64.

        Args:
            weight_OI: On the device that does it.
            bias: Kept as it is.
            double: Whether the blocks' scales are rounded too, to 8 bits.
        """
        weight = bnb.nn.Params4bit(
            weight_OI.detach().contiguous(), requires_grad=False, quant_type="nf4", compress_statistics=double
        )
        return cls.around(weight.to(weight_OI.device), bias, weight_OI.shape)

    @classmethod
    def around(cls, weight: Any, bias: nn.Parameter | None, shape: tuple[int, ...]) -> Linear4bit:
        """Take over a rounded weight.

        Args:
            weight: A `bitsandbytes.nn.Params4bit`.
            bias: Kept as it is.
            shape: (O, I).
        """
        rows, columns = shape
        layer = cls(columns, rows, bias=False, device="meta")
        layer.weight, layer.bias = weight, bias
        layer.quant_state = weight.quant_state
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """In the dtype of the input, or that of autocast."""
        fix_4bit_weight_quant_state_from_module(self)
        x, bias = _ready(x, self.bias)
        if x.device.type == "cpu":
            return _product(x, self, bias)
        return bnb.matmul_4bit(x, self.weight, bias=bias, quant_state=self.weight.quant_state)

    def dequantized(self) -> Tensor:
        """O × I, in the dtype it was rounded from."""
        shape = self.weight.quant_state.shape
        state = copy.copy(self.weight.quant_state)
        state.shape = torch.Size([shape.numel()])  # as one row, which is read rightly everywhere
        return bnb.functional.dequantize_4bit(self.weight.data, state).reshape(shape)


class Linear8bit(Quantized, bnb.nn.Linear8bitLt):
    """A frozen weight in 8 bits, one scale for each row."""

    bits = 8
    scale_O: Tensor

    @classmethod
    def holding(cls, weight_OI: Tensor, bias: nn.Parameter | None) -> Linear8bit:
        """Round a weight to 8 bits.

        Args:
            weight_OI: On the device that does it.
            bias: Kept as it is.
        """
        codes, scale_O, _ = bnb.functional.int8_vectorwise_quant(weight_OI.detach().contiguous().half())
        return cls.around(codes, scale_O, bias)

    @classmethod
    def around(cls, codes_OI: Tensor, scale_O: Tensor, bias: nn.Parameter | None, threshold: float = 0.0) -> Linear8bit:
        """Take over a rounded weight.

        Args:
            codes_OI: int8.
            scale_O: The largest absolute value of each row.
            bias: Kept as it is.
            threshold: Inputs above it are not rounded (on a GPU); 0 for none.
        """
        rows, columns = codes_OI.shape
        layer = cls(columns, rows, bias=False, has_fp16_weights=False, threshold=threshold, device="meta")
        layer.weight = bnb.nn.Int8Params(codes_OI, requires_grad=False, has_fp16_weights=False)
        layer.bias, layer.scale_O = bias, scale_O.float()
        layer._seat()
        return layer

    def _seat(self) -> None:
        """Put weight and scales where bitsandbytes and peft look for them."""
        self.state.CB, self.state.SCB = self.weight.data, self.scale_O

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Linear8bit:
        super()._apply(fn, recurse)
        self.scale_O = self.scale_O.to(self.weight.device)  # its device changes, its dtype does not
        self._seat()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """In the dtype of the input, or that of autocast."""
        x, bias = _ready(x, self.bias)
        if x.device.type == "cpu":
            return _product(x, self, bias)
        self._seat()
        return bnb.matmul(x, self.weight, bias=bias, state=self.state)

    def dequantized(self) -> Tensor:
        """O × I, float32."""
        return bnb.functional.int8_vectorwise_dequant(self.weight.data, self.scale_O)


def ours(module: nn.Module) -> nn.Module | None:
    """A layer of bitsandbytes' own as one of these, over the same memory; None for anything else."""
    if isinstance(module, Quantized):
        return None
    weight: Any = getattr(module, "weight", None)
    if isinstance(module, bnb.nn.Linear4bit) and getattr(weight, "quant_state", None) is not None:
        return Linear4bit.around(weight, module.bias, tuple(weight.quant_state.shape))
    if isinstance(module, bnb.nn.Linear8bitLt) and weight.dtype == torch.int8:
        scale_O = weight.SCB if weight.SCB is not None else module.state.SCB
        return Linear8bit.around(weight.data, scale_O, module.bias, module.state.threshold)
    return None


class _Product(torch.autograd.Function):
    """x times a rounded weight, which is widened in the backward again rather than kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Quantized) -> Tensor:
        ctx.layer = layer
        return nn.functional.linear(x, layer.dequantized().to(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad @ ctx.layer.dequantized().to(grad.dtype), None


def _product(x: Tensor, layer: Quantized, bias: Tensor | None) -> Tensor:
    product: Tensor = _Product.apply(x, layer)  # type: ignore[no-untyped-call]
    return product if bias is None else product + bias


def _ready(x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Input and bias in the dtype to compute in: autocast's, else the input's."""
    dtype = autocast_dtype(x.device.type) or x.dtype
    return x.to(dtype), None if bias is None else bias.to(dtype)
