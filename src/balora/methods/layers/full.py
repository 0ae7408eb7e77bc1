"""Methods that train the model's own tensors: all of them, or the bias terms."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from balora.errors import BALoraError
from balora.methods.layers.peft_lora import head_names
from balora.methods.registry import AdaptOptions


def full(model: PreTrainedModel, options: AdaptOptions) -> nn.Module:
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


def bitfit(model: PreTrainedModel, options: AdaptOptions) -> nn.Module:
    """Let every bias term learn, and a classification head. Rank, alpha and targets have no meaning here.

    Raises:
        BALoraError: The model has no bias terms, as LLaMA has none.

    Reference: Ben Zaken et al., BitFit, 2021, section 3.
    """
    heads = tuple(f"{name}." for name in head_names(model))
    biases = [
        p for name, p in model.named_parameters() if name.rpartition(".")[2] == "bias" and not name.startswith(heads)
    ]
    if not biases:
        raise BALoraError(
            f"{type(model).__name__} has no bias terms, which are all that method 'bitfit' trains. Use a low-rank method, or a "
            "model with biases, such as BERT, GPT-2 or BART."
        )
    model.requires_grad_(False)
    for parameter in biases + [p for name, p in model.named_parameters() if name.startswith(heads)]:
        parameter.requires_grad_(True)
    return model
