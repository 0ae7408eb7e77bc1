"""Run a model on the meta device with the tensor sizes of a real device, so that its memory is counted without weights.

Shapes: B sequences, H heads, T positions, h size of a head.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


@contextlib.contextmanager
def on_meta(model: nn.Module | None = None) -> Iterator[None]:
    """Give operations on the meta device the tensor sizes of a real device inside the block.

    The ``model`` to run is needed if its adapter is on stacked experts.
    """
    stacks = [layer for layer in model.modules() if isinstance(layer, ParamWrapper)] if model is not None else []
    for layer in stacks:
        layer._activate_lora = functools.partial(_activate_lora, layer)
    try:
        with _Values(), _Attention():
            yield
    finally:
        for layer in stacks:
            del layer._activate_lora


class _Values(TorchDispatchMode):
    """Return true or 1 for every value that is read on the meta device: no row is padded, everything is finite."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Return 1 if the operation reads a value, or run it."""
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return torch.ones((), dtype=args[0].dtype).item()
        if func is torch.ops.aten._grouped_mm.default and args[0].is_meta and args[1].dim() == 3:
            # Rows times the matrix of their expert. torch knows the output size for bfloat16 only.
            return args[0].new_empty(args[0].shape[0], args[1].shape[2])
        return func(*args, **(kwargs or {}))


class _Attention(TorchFunctionMode):
    """Replace attention by a function that keeps what the kernels of CPU and GPU keep: inputs, output, a number per row.

    On the meta device torch computes attention from its parts, which would keep T × T scores for each head.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace attention, or call the function."""
        if func is torch.nn.functional.scaled_dot_product_attention:
            return _attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any, **__: Any) -> Any:
    return _AttentionSizes.apply(query, key, value, attn_mask)  # type: ignore[no-untyped-call]


class _AttentionSizes(torch.autograd.Function):
    """Attention without values: outputs and saved tensors have the right sizes."""

    @staticmethod
    def forward(ctx: Any, query_BHTh: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        *outer, heads, length, _ = query_BHTh.shape
        # In memory the position comes before the head, so that the caller's transpose needs no copy.
        output = query_BHTh.new_empty(*outer, length, heads, value.shape[-1]).transpose(-3, -2)
        total_BHT = query_BHTh.new_empty(query_BHTh.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query_BHTh, key, value, mask, output, total_BHT)
        return output

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


@contextlib.contextmanager
def _activate_lora(layer: ParamWrapper, adapters: list[str]) -> Iterator[None]:
    """Add a LoRA to stacked experts as peft does, but without `torch.autocast`, which refuses the meta device."""
    base, name, weight = layer.get_base_layer(), layer.parameter_name, layer.get_param()
    known = [adapter for adapter in adapters if adapter in layer.lora_A]
    if len(known) != 1 or layer.num_experts == 1 or weight.dtype.itemsize == 1:  # peft uses no autocast for these
        with type(layer)._activate_lora(layer, adapters):
            yield
        return
    trainable = weight.requires_grad
    parametrize.register_parametrization(base, name, _AddFactors(*layer.get_delta_factors(known[0])))
    base.parametrizations[name].original.requires_grad_(trainable)
    try:
        with parametrize.cached():
            yield
    finally:
        layer._remove_parametrizations()


class _AddFactors(nn.Module):
    """Add scaling · B·A to a stack of weights."""

    def __init__(self, factor_b: Tensor, factor_a: Tensor, scaling: float) -> None:
        super().__init__()
        self.factor_b, self.factor_a, self.scaling = factor_b, factor_a, scaling

    def forward(self, weight: Tensor) -> Tensor:
        return torch.baddbmm(weight, self.factor_b, self.factor_a, alpha=self.scaling)
