"""Methods that train tensors of the model itself: all weights, or the bias terms."""

from torch import nn
from transformers import PreTrainedModel

from balora.errors import BALoraError
from balora.methods.layers.peft_lora import head_names
from balora.methods.method import AdaptOptions
from balora.models.multimodal import parts_beside_text, say_left_alone


def unfreeze_all(model: PreTrainedModel, options: AdaptOptions) -> nn.Module:
    """Make every parameter trainable, and refuse quantized weights. Rank, alpha and target modules have no effect.

    A multimodal model trains its text part alone.
    """
    fixed = [name for name, parameter in model.named_parameters() if not parameter.is_floating_point()]
    if fixed:
        raise BALoraError(
            f"Full fine-tuning needs floating-point weights, and {fixed[0]} is quantized. Load the model in bfloat16 or "
            "float32, or use a low-rank method."
        )
    model.requires_grad_(True)
    parts = parts_beside_text(model)
    for part in parts:
        model.get_submodule(part).requires_grad_(False)
    say_left_alone(parts)
    return model


def unfreeze_biases(model: PreTrainedModel, options: AdaptOptions) -> nn.Module:
    """Make every bias term and the classification head trainable. Rank, alpha and target modules have no effect.

    Reference: Ben Zaken et al., BitFit, 2021, section 3.
    """
    heads = tuple(f"{name}." for name in head_names(model))
    in_heads = {name for name, _ in model.named_parameters() if name.startswith(heads)}
    beside = tuple(f"{part}." for part in parts_beside_text(model))
    biases = {name for name, _ in model.named_parameters() if name.rpartition(".")[2] == "bias"} - in_heads
    biases = {name for name in biases if not name.startswith(beside)}
    if not biases:
        raise BALoraError(
            f"{type(model).__name__} has no bias terms, and method 'bitfit' trains nothing else. Use a low-rank method, or a "
            "model with biases, such as BERT, GPT-2 or BART."
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in biases | in_heads)
    say_left_alone(parts_beside_text(model))
    return model
