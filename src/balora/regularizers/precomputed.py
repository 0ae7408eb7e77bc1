"""Scalars whose gradient is computed in the forward, together with the value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from balora.regularizers.checks import refuse_second_derivative

Compute = Callable[..., tuple[Tensor, Sequence[Tensor | None]]]


def with_gradient(term: str, compute: Compute, *arguments: Any) -> Tensor:
    """Return a scalar on the graph; its backward only multiplies the precomputed gradients by the upstream gradient.

    Args:
        term: Name of the term, for the error about a second derivative.
        compute: Function that is called with a tuple of flags and the arguments, without recording a graph. It returns
            the value and the gradients of the leading arguments. A flag says whether an argument's gradient is needed;
            the gradient may be None if it is not.
        arguments: Tensors and other values.

    Returns:
        The value. It can be differentiated once.
    """
    recording = torch.is_grad_enabled()
    needed = tuple(recording and isinstance(value, Tensor) and value.requires_grad for value in arguments)
    value: Tensor = _WithGradient.apply(term, compute, needed, *arguments)
    return value


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, term: str, compute: Compute, needed: tuple[bool, ...], *arguments: Any) -> Tensor:
        value, gradients = compute(needed, *arguments)
        ctx.save_for_backward(*gradients)
        ctx.term, ctx.without_gradient = term, len(arguments) - len(gradients)
        return value

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative(ctx.term)
        gradients = (None if gradient is None else upstream * gradient for gradient in ctx.saved_tensors)
        return None, None, None, *gradients, *[None] * ctx.without_gradient
