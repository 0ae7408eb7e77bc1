"""Methods that train tensors of the model itself: all weights, or the bias terms."""

from torch import nn
from transformers import PreTrainedModel

from balora.errors import BALoraError
from balora.methods.layers.peft_lora import head_names
from balora.methods.method import AdaptOptions


def unfreeze_all(model: PreTrainedModel, options: AdaptOptions) -> nn.Module:
    """Make every parameter trainable, and refuse quantized weights. Rank, alpha and target modules have no effect."""
    fixed = [name for name, parameter in model.named_parameters() if not parameter.is_floating_point()]
    if fixed:
        raise BALoraError(
            f"Full fine-tuning needs floating-point weights, and {fixed[0]} is quantized. Load the model in bfloat16 or "
            "float32, or use a low-rank method."
        )
    return model.requires_grad_(True)


def unfreeze_biases(model: PreTrainedModel, options: AdaptOptions) -> nn.Module:
    """Make every bias term and the classification head trainable. Rank, alpha and target modules have no effect.

    Reference: Ben Zaken et al., BitFit, 2021, section 3.
    """
    heads = tuple(f"{name}." for name in head_names(model))
    in_heads = {name for name, _ in model.named_parameters() if name.startswith(heads)}
    biases = {name for name, _ in model.named_parameters() if name.rpartition(".")[2] == "bias"} - in_heads
    if not biases:
        raise BALoraError(
            f"{type(model).__name__} has no bias terms, and method 'bitfit' trains nothing else. Use a low-rank method, or a "
            "model with biases, such as BERT, GPT-2 or BART."
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in biases | in_heads)
    return model
