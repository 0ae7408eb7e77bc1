"""What a run on the meta device lacks: answers about values, and an attention that keeps what the real ones keep.

With both, a model runs there as it would on its device, and what it takes can be counted without a weight.
Shapes: B sequences, H heads, T positions, h size of a head.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


@contextlib.contextmanager
def on_meta() -> Iterator[None]:
    """Inside, what is on the meta device runs as it would on its device, as far as sizes go."""
    with (
        _Answers(),
        mock.patch.object(torch, "autocast", _autocast),
        mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", _attention),
    ):
        yield


def _autocast(device_type: str, *args: Any, _torch: Any = torch.autocast, **kwargs: Any) -> Any:
    """The meta device knows no autocast and refuses even to switch it off, which peft does over stacked experts."""
    return contextlib.nullcontext() if device_type == "meta" else _torch(device_type, *args, **kwargs)


class _Answers(TorchDispatchMode):
    """Inside, whoever asks for a value on the meta device is told yes, or 1: no row is padded, all is finite."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer, or run what can be run."""
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return torch.ones((), dtype=args[0].dtype).item()
        if func is torch.ops.aten._grouped_mm.default and args[0].is_meta and args[1].dim() == 3:
            # Rows times their expert's matrix: torch has the sizes for bfloat16 alone.
            return args[0].new_empty(args[0].shape[0], args[1].shape[2])
        return func(*args, **(kwargs or {}))


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any, **__: Any
) -> Tensor:
    """Attention that keeps its inputs, its output and a number for each row, as the kernels of CPU and GPU do.

    On the meta device torch takes the way that writes the scores out, T × T for each head, which no device takes.
    """
    output: Tensor = _Attention.apply(query, key, value, attn_mask)  # type: ignore[no-untyped-call]
    return output


class _Attention(torch.autograd.Function):
    """The sizes alone."""

    @staticmethod
    def forward(ctx: Any, query_BHTh: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        *outer, heads, length, _ = query_BHTh.shape
        # Position before head: what comes after turns it so, and finds it turned already.
        turned = query_BHTh.new_empty(*outer, length, heads, value.shape[-1]).transpose(-3, -2)
        total_BHT = query_BHTh.new_empty(query_BHTh.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query_BHTh, key, value, mask, turned, total_BHT)
        return turned

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None
