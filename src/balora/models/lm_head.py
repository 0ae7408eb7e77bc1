"""Output head of a language model, which computes logits from hidden states.

Shapes: M tokens, m tokens of a chunk, d hidden size (D as a suffix), V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from balora.errors import BALoraError


@dataclass(frozen=True)
class LinearHead:
    r"""A linear head with bias, scale and soft cap.

    .. math:: Z = c \tanh(X / c), \qquad X = s \, (H W^\top + b)

    Attributes:
        weight_VD: W.
        bias_V: b; None for no bias. An entry of -inf excludes its token.
        logit_scale: s (Cohere's ``logit_scale``, one over Granite's ``logits_scaling``).
        softcap: c (Gemma 2's ``final_logit_softcapping``); None for no cap.

    Raises:
        BALoraError: The weight is not a matrix, the bias has another length, or scale or cap is invalid.

    Example:
        >>> head = LinearHead(torch.eye(2), logit_scale=2.0)
        >>> head.logits(torch.tensor([[1.0, 3.0]]))
        tensor([[2., 6.]])
    """

    weight_VD: Tensor
    bias_V: Tensor | None = None
    logit_scale: float = 1.0
    softcap: float | None = None

    def __post_init__(self) -> None:
        shape = tuple(self.weight_VD.shape)
        if len(shape) != 2:
            raise BALoraError(f"The head must be a matrix of vocabulary × hidden size; its shape is {shape}.")
        bias_shape = shape[:1] if self.bias_V is None else tuple(self.bias_V.shape)
        if bias_shape != shape[:1]:
            raise BALoraError(
                f"The head's bias must have one entry per token, {shape[0]} in all; its shape is {bias_shape}."
            )
        if not math.isfinite(self.logit_scale) or self.logit_scale == 0:
            raise BALoraError(f"The head's logit_scale must be a number other than 0, and it is {self.logit_scale}.")
        if self.softcap is not None and not (math.isfinite(self.softcap) and self.softcap > 0):
            raise BALoraError(f"The head's softcap must be a positive number, or None for none; it is {self.softcap}.")

    @property
    def vocabulary(self) -> int:
        """Number of tokens V."""
        return self.weight_VD.shape[0]

    @property
    def trainable(self) -> bool:
        """True if the weight or the bias requires a gradient."""
        return self.weight_VD.requires_grad or (self.bias_V is not None and self.bias_V.requires_grad)

    def to(self, dtype: torch.dtype) -> LinearHead:
        """Return the head in another dtype, on the graph."""
        return self._map(lambda tensor: tensor.to(dtype))

    def detach(self) -> LinearHead:
        """Return the head without gradients."""
        return self._map(Tensor.detach)

    def clone(self) -> LinearHead:
        """Return the head with memory of its own."""
        return self._map(Tensor.clone)

    def _map(self, change: Callable[[Tensor], Tensor]) -> LinearHead:
        bias_V = None if self.bias_V is None else change(self.bias_V)
        return LinearHead(change(self.weight_VD), bias_V, self.logit_scale, self.softcap)

    def logits(self, hidden_MD: Tensor) -> Tensor:
        """Return all logits (M × V) in the hidden states' dtype, with gradients for hidden states, weight and bias."""
        logits_MV = torch.nn.functional.linear(hidden_MD, self.weight_VD, self.bias_V) * self.logit_scale
        return logits_MV if self.softcap is None else self.softcap * torch.tanh(logits_MV / self.softcap)

    def affine(self, hidden_mD: Tensor, factor: float, out_mV: Tensor) -> Tensor:
        """Write ``factor`` · X into ``out_mV`` (float32 or wider); the matrix product runs in the hidden states' dtype.

        A bias of -inf becomes -1e30, because 0 · -inf would be NaN.
        """
        factor *= self.logit_scale
        if hidden_mD.dtype == out_mV.dtype:
            # A single kernel computes the product, the factor and the bias.
            addend = out_mV if self.bias_V is None else self._finite_bias(out_mV.dtype)
            beta = 0.0 if self.bias_V is None else factor
            return torch.addmm(addend, hidden_mD, self.weight_VD.T, beta=beta, alpha=factor, out=out_mV)
        out_mV.copy_(hidden_mD @ self.weight_VD.T)
        if self.bias_V is not None:
            out_mV.add_(self._finite_bias(out_mV.dtype))
        return out_mV if factor == 1.0 else out_mV.mul_(factor)

    def _finite_bias(self, dtype: torch.dtype) -> Tensor:
        assert self.bias_V is not None
        return self.bias_V.to(dtype).clamp(min=-1e30)
