"""Bottleneck adapters: small two-layer networks after the sub-layers of each block (Houlsby, Pfeiffer).

An adapter is a forward hook on the last linear layer of its sub-layer, so that all parameter names of the pre-trained model
stay the same. Shapes: d hidden size, m bottleneck.
"""

import re
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from balora.errors import BALoraError
from balora.methods.layers.peft_lora import head_names
from balora.methods.method import AdaptOptions
from balora.methods.target_modules import linear_layers, stacked_weights
from balora.models.multimodal import parts_beside_text, say_left_alone

AFTER_ATTENTION = (
    r"(.*\.)?(o_proj|out_proj|attention\.output\.dense|attn\.c_proj|SelfAttention\.o|EncDecAttention\.o|self_attn\.dense"
    r"|attention\.attn\.o|attention\.out_lin)"
)
AFTER_FEED_FORWARD = r"(.*\.)?(down_proj|fc2|mlp\.c_proj|wo|mlp\.fc_out|ffn\.lin2|(?<!attention\.)output\.dense)"
"""Patterns of the name of the last linear layer of a sub-layer, in all supported model families."""
_STD = 1e-2  # Houlsby et al., section 3.6


class Bottleneck(nn.Module):
    r"""One adapter: :math:`h + W_{up}\, a(W_{down} h + b_{down}) + b_{up}`, with W_up and b_up zero before training."""

    def __init__(self, hidden_size: int, bottleneck: int, activation: str) -> None:
        super().__init__()
        self.down = nn.Linear(hidden_size, bottleneck)
        self.activation = ACT2FN[activation]
        self.up = nn.Linear(bottleneck, hidden_size)

    def reset(self, generator: torch.Generator) -> None:
        """Initialize the lower layer at random and the upper one to zero, so that the adapter is the identity."""
        if self.down.weight.is_meta:
            return
        self.down.weight.data.copy_(_STD * torch.randn(self.down.weight.shape, generator=generator))
        for tensor in (self.down.bias, self.up.weight, self.up.bias):
            tensor.data.zero_()

    def forward(self, hidden_d: Tensor) -> Tensor:
        """Apply the adapter to (…, d), in float32; the result has the dtype of the input."""
        inner = self.up(self.activation(self.down(hidden_d.to(self.down.weight.dtype))))
        return hidden_d + inner.to(hidden_d.dtype)


def wrap_houlsby(model: PreTrainedModel, options: AdaptOptions) -> nn.Module:
    """Add adapters of size ``rank`` after the attention and the feed-forward layer of each block, and train the layer norms.

    Reference: Houlsby et al., Parameter-efficient transfer learning for NLP, 2019, section 2.1 and figure 2.
    """
    _attach(model, [AFTER_ATTENTION, AFTER_FEED_FORWARD], options)
    beside = tuple(f"{part}." for part in parts_beside_text(model))
    for name, module in model.named_modules():
        is_norm = "LayerNorm" in type(module).__name__ or "RMSNorm" in type(module).__name__
        if is_norm and not name.startswith(beside):
            module.requires_grad_(True)
    return model


def wrap_pfeiffer(model: PreTrainedModel, options: AdaptOptions) -> nn.Module:
    """Add one adapter of size ``rank`` after the feed-forward layer of each block.

    Reference: Pfeiffer et al., AdapterFusion, 2020, section 3.
    """
    _attach(model, [AFTER_FEED_FORWARD], options)
    return model


def _attach(model: PreTrainedModel, patterns: list[str], options: AdaptOptions) -> None:
    """Freeze the model except for its classification head, and add an adapter to every layer that matches a pattern."""
    beside = parts_beside_text(model)
    stacks = [name for name in stacked_weights(model) if not name.startswith(tuple(f"{part}." for part in beside))]
    if stacks:
        raise BALoraError(
            f"{stacks[0]} stacks the weights of several experts, so there is no single feed-forward layer for a bottleneck "
            "adapter. Use a low-rank method."
        )
    existing = next((name for name, _ in model.named_modules() if name.rpartition(".")[2] == "bottleneck"), None)
    if existing is not None:
        raise BALoraError(
            f"{type(model).__name__} already has bottleneck layers ({existing}), so a bottleneck adapter has no single width. Use "
            "a low-rank method."
        )
    heads = tuple(f"{name}." for name in head_names(model))
    skipped = (*heads, *(f"{part}." for part in beside))
    linear = {name: module for name, module in linear_layers(model) if not name.startswith(skipped)}
    targets = [name for name in linear if any(re.fullmatch(pattern, name) for pattern in patterns)]
    _check_blocks(model, list(linear), patterns)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(heads))
    generator = torch.Generator().manual_seed(options.seed)
    for name in targets:
        module = linear[name]
        hidden_size = module.weight.shape[1 if isinstance(module, Conv1D) else 0]
        with torch.device(module.weight.device):
            module.bottleneck = Bottleneck(hidden_size, options.rank, options.extra["activation"])
        module.bottleneck.reset(generator)
        module.register_forward_hook(_apply_bottleneck)
    say_left_alone(beside)


def _check_blocks(model: nn.Module, linear: list[str], patterns: list[str]) -> None:
    """Refuse a model in which a block has no layer for one of the patterns: its sub-layer would silently get no adapter."""
    blocks: dict[str, list[str]] = {}
    for name in linear:
        match = re.match(r"(.*?\.\d+)\.(.*)", name)  # the outermost module list holds the blocks
        if match:
            blocks.setdefault(match[1], []).append(name)
    for block, names in blocks.items():
        for pattern in patterns:
            if not any(re.fullmatch(pattern, name) for name in names):
                kind = "attention" if pattern == AFTER_ATTENTION else "feed-forward"
                raise BALoraError(
                    f"The last layer of the {kind} sub-layer in {block} of {type(model).__name__} is unknown, so a bottleneck "
                    "adapter cannot be added. Use a low-rank method."
                )
    if not blocks:
        raise BALoraError(f"{type(model).__name__} has no blocks for a bottleneck adapter. Use a low-rank method.")


def _apply_bottleneck(module: Any, inputs: Any, output: Tensor) -> Tensor:
    adapted: Tensor = module.bottleneck(output)
    return adapted
