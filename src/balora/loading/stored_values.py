"""Look for NaN and infinite values in the weights files of a model, without loading the model."""

import math
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from balora.errors import BALoraError
from balora.loading.model_files import nonfinite_weights_problem, weight_files
from balora.loading.source import ModelSource

_LARGEST_READ = 2 << 30
_PART = 32 << 20
_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types of safetensors that can be NaN or infinite and that a trainer loads unquantized."""


def check_stored_values(source: ModelSource) -> str | None:
    """Read the stored weights of a local model in parts.

    Above 2 GiB only a part of each tensor is read, spread over its rows.

    Returns:
        A sentence for the user if not all weights were read; None if all were read, or the model is not local.

    Raises:
        BALoraError: A weight is NaN or infinite, or becomes infinite in the dtype of the run.
    """
    directory, name = source.model.directory, source.model.name
    if directory is None:
        return None
    files = weight_files(directory)
    if not files:
        return f"the weights of {name} are in pickle form and were not read; a run looks for NaN when it loads them."
    sizes = {file: _bytes_of_floats(file) for file in files}
    total = sum(sizes.values())
    share = min(1.0, _LARGEST_READ / max(1, total))
    dtype = None if source.dtype == "auto" else getattr(torch, source.dtype)
    for file in files:
        with safe_open(file, framework="pt") as opened:
            keys = opened.keys()
            for key in keys:
                part = opened.get_slice(key)
                stored = _FLOATS.get(part.get_dtype())
                if stored is None:
                    continue
                shape = part.get_shape()
                if not shape:
                    _check(opened.get_tensor(key), dtype, key, name)
                    continue
                row_bytes = max(1, math.prod(shape[1:]) * stored.itemsize)
                rows = min(shape[0], max(1, _PART // row_bytes))
                for first in _starts(shape[0], rows, share):
                    _check(part[first : first + rows], dtype, key, name)
    if share < 1:
        return (
            f"of the {total / 2**30:.1f} GiB of weights, {_LARGEST_READ / 2**30:g} GiB, spread over all tensors, were read to look "
            "for NaN; a run looks at all of them when it loads them."
        )
    return None


def _bytes_of_floats(file: Path) -> int:
    with safe_open(file, framework="pt") as opened:
        keys = opened.keys()
        parts = [opened.get_slice(key) for key in keys]
        return sum(
            math.prod(p.get_shape()) * _FLOATS[p.get_dtype()].itemsize for p in parts if p.get_dtype() in _FLOATS
        )


def _starts(total: int, rows: int, share: float) -> list[int]:
    """Return the first row of each part to read: every part, or a share of them with equal distances, at least one."""
    starts = list(range(0, total, rows))
    count = max(1, math.floor(share * len(starts)))
    return [starts[number * len(starts) // count] for number in range(count)]


def _check(values: Tensor, dtype: torch.dtype | None, key: str, name: str) -> None:
    if not values.numel():
        return
    low, high = torch.aminmax(values)
    dtype = dtype or values.dtype
    problem = nonfinite_weights_problem(low.to(dtype), high.to(dtype), key, name)
    if problem:
        raise BALoraError(problem)
