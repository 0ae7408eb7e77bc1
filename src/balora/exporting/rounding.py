"""Round the weights of an export to another dtype, with the size of the error; a value that would overflow is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from balora.errors import BALoraError, suggest

DTYPES = ("float32", "bfloat16", "float16")
"""Names of the dtypes that an export can have."""


@dataclasses.dataclass(frozen=True)
class Rounding:
    """Error of rounding to a dtype."""

    dtype: str
    error: float
    """Frobenius norm of the rounding error, divided by that of the weights, over all tensors together."""
    worst: float
    """The same for the tensor that loses most."""
    tensor: str
    """Name of that tensor."""

    def describe(self) -> str:
        """Return one sentence for the user."""
        if not self.error:
            return f"In {self.dtype} no weight was rounded."
        most = f"most in {self.tensor}, {self.worst:.2g}"
        return f"Rounded to {self.dtype}: relative error {self.error:.2g} (Frobenius norm; {most})."


def dtype_named(name: str) -> torch.dtype:
    """Return a dtype by its name.

    Raises:
        BALoraError: An export has no such dtype.
    """
    if name not in DTYPES:
        raise BALoraError(f"--dtype must be {', '.join(DTYPES)}, not {name!r}.{suggest(name, DTYPES)}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


class _Sum:
    """Running sum of squared weights and squared rounding errors."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype, self.squares, self.errors = dtype, 0.0, 0.0
        self.worst, self.tensor = 0.0, ""

    def round(self, name: str, tensor: Tensor) -> Tensor:
        rounded = tensor.to(self.dtype)
        if bool((tensor.isfinite() & ~rounded.isfinite()).any()):
            raise BALoraError(
                f"{name} has a value of {float(tensor.abs().max()):.3g}, which {_name(self.dtype)} cannot hold (at most "
                f"{torch.finfo(self.dtype).max:,.0f}). Use --dtype bfloat16 or float32."
            )
        squares = float(tensor.double().square().sum())
        error = float((tensor.double() - rounded.double()).square().sum())
        self.squares, self.errors = self.squares + squares, self.errors + error
        share = (error / squares) ** 0.5 if squares else 0.0
        if share > self.worst:
            self.worst, self.tensor = share, name
        return rounded

    def result(self) -> Rounding:
        error = (self.errors / self.squares) ** 0.5 if self.squares else 0.0
        return Rounding(_name(self.dtype), error, self.worst, self.tensor)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def round_tensors(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> tuple[dict[str, Tensor], Rounding]:
    """Return floating tensors in a dtype, and the error of rounding; other tensors stay as they are.

    Raises:
        BALoraError: A value would overflow.

    Example:
        >>> rounded, found = round_tensors({"w": torch.tensor([1.0, 1.001])}, torch.bfloat16)
        >>> rounded["w"].tolist(), f"{found.error:.1g}"
        ([1.0, 1.0], '0.0007')
    """
    total = _Sum(dtype)
    rounded = {n: total.round(n, t) if t.is_floating_point() else t for n, t in tensors.items()}
    return rounded, total.result()


@torch.no_grad()
def round_model(model: nn.Module, dtype: torch.dtype) -> Rounding:
    """Round the parameters of a model in place; buffers keep their dtype.

    Raises:
        BALoraError: A value would overflow. Parameters before it are rounded already.
    """
    total = _Sum(dtype)
    for name, parameter in model.named_parameters():  # tied parameters are listed once, and stay tied
        if parameter.is_floating_point():
            parameter.data = total.round(name, parameter.data)
    return total.result()
