"""Interface of a linear layer with a quantized weight, without an import of bitsandbytes.

Shapes: O output features, I input features.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from balora.models.precision import autocast_dtype


class QuantizedLinear:
    """Mixin of the layers in `balora.methods.quantization.bitsandbytes_layers`.

    On the CPU the forward multiplies by the dequantized weight, so that training and evaluation compute the same function.
    """

    bits: int
    transposed = False
    """True if the layer replaces one that stores its weight as I × O (GPT-2's Conv1D)."""

    def dequantized(self) -> Tensor:
        """Return the weight, O × I, by which the forward multiplies."""
        raise NotImplementedError

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return the layer's output on an accelerator, by bitsandbytes' kernels."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output in autocast's dtype, else in the dtype of the input."""
        x = x.to(autocast_dtype(x.device.type) or x.dtype)
        bias: Tensor | None = None if self.bias is None else self.bias.to(x.dtype)  # type: ignore[attr-defined]
        if x.device.type != "cpu":
            return self.multiply(x, bias)
        product: Tensor = _DequantizedProduct.apply(x, self)  # type: ignore[no-untyped-call]
        return product if bias is None else product + bias

    def to_linear(self, dtype: torch.dtype) -> nn.Module:
        """Return an ordinary layer that computes the same function."""
        weight_OI = self.dequantized().to(dtype)
        rows, columns = weight_OI.shape
        with torch.device("meta"):
            layer = Conv1D(rows, columns) if self.transposed else nn.Linear(columns, rows)
        layer.weight = nn.Parameter(weight_OI.T.contiguous() if self.transposed else weight_OI, requires_grad=False)
        layer.bias = self.bias  # type: ignore[attr-defined]
        return layer


class _DequantizedProduct(torch.autograd.Function):
    """Product of x and a quantized weight. The backward dequantizes the weight again, to save memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return nn.functional.linear(x, layer.dequantized().to(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad @ ctx.layer.dequantized().to(grad.dtype), None
