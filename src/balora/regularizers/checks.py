"""What every formula asks of its tensors: enough precision, the right shape, one derivative."""

from __future__ import annotations

import torch
from torch import Tensor

from balora.errors import BALoraError


def widened(values: Tensor) -> Tensor:
    """Return the tensor in float32, or unchanged where it is wider already."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def require_matrix(values: Tensor, name: str, axes: str) -> None:
    """Refuse anything but a floating-point matrix.

    Raises:
        BALoraError: The tensor is not two-dimensional, or holds integers.
    """
    if values.dim() != 2:
        raise BALoraError(f"{name} must be a matrix of {axes}, and its shape is {tuple(values.shape)}.")
    require_floating(values, name)


def require_floating(values: Tensor, name: str) -> None:
    """Refuse integers and booleans, which carry no gradient.

    Raises:
        BALoraError: The tensor is not of a floating dtype.
    """
    if not values.is_floating_point():
        raise BALoraError(f"{name} must be floating point, and it is {values.dtype}.")


def require_same_shape(student: Tensor, teacher: Tensor, what: str) -> None:
    """Refuse a student and a teacher that do not line up; broadcasting would hide the mistake.

    Raises:
        BALoraError: The shapes differ.
    """
    if student.shape != teacher.shape:
        raise BALoraError(
            f"Student and teacher {what} must have one shape, and they are "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}."
        )


def refuse_second_derivative(what: str) -> None:
    """Call in a backward whose gradient was computed ahead: differentiating that gradient would silently give 0.

    Torch's own ``once_differentiable`` says the same, and makes importing the formulas load the whole compiler.

    Raises:
        BALoraError: The backward runs with ``create_graph=True``.
    """
    if torch.is_grad_enabled():
        raise BALoraError(f"{what} has a first derivative only; take the backward without create_graph=True.")
