"""Checks and conversions that every formula applies to its tensors."""

import torch
from torch import Tensor

from balora.errors import BALoraError


def widened(values: Tensor) -> Tensor:
    """Return the tensor in float32, or unchanged if it is wider already."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def require_matrix(values: Tensor, name: str, axes: str) -> None:
    """Refuse anything but a floating-point matrix."""
    if values.dim() != 2:
        raise BALoraError(f"{name} must be a matrix of {axes}, and its shape is {tuple(values.shape)}.")
    require_floating(values, name)


def require_floating(values: Tensor, name: str) -> None:
    """Refuse integers and booleans, which carry no gradient."""
    if not values.is_floating_point():
        raise BALoraError(f"{name} must be floating point, and it is {values.dtype}.")


def require_same_shape(student: Tensor, teacher: Tensor, kind: str) -> None:
    """Refuse a student and a teacher of different shapes, which broadcasting would silently combine."""
    if student.shape != teacher.shape:
        raise BALoraError(
            f"Student and teacher {kind} must have one shape, and they are "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}."
        )


def require_rank(rank: int) -> None:
    """Refuse a spectral rank below 1."""
    if rank < 1:
        raise BALoraError(f"The spectral rank must be at least 1, and it is {rank}.")


def refuse_second_derivative(term: str) -> None:
    """Refuse, in a backward, to differentiate a gradient that the forward computed: the result would silently be 0.

    Torch's ``once_differentiable`` does the same, but importing it loads all of torch's compiler.
    """
    if torch.is_grad_enabled():
        raise BALoraError(f"{term} has a first derivative only; take the backward without create_graph=True.")
