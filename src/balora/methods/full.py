"""Full fine-tuning: no adapter, every weight learns."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from balora.errors import BALoraError
from balora.methods.registry import AdaptOptions


def build_full(model: PreTrainedModel, options: AdaptOptions) -> nn.Module:
    """Let every parameter learn. Rank, alpha and targets have no meaning here.

    Raises:
        BALoraError: The weights are quantized, so that no gradient can reach them.
    """
    fixed = [name for name, parameter in model.named_parameters() if not parameter.is_floating_point()]
    if fixed:
        raise BALoraError(
            f"Full fine-tuning needs floating-point weights, and {fixed[0]} is quantized. Load the model in bfloat16 or "
            "float32, or use a low-rank method."
        )
    return model.requires_grad_(True)
