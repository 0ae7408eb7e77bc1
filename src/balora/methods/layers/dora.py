"""DoRA through peft: the length of each row of W learns apart from its direction."""

from __future__ import annotations

from torch import nn

from balora.errors import BALoraError
from balora.methods.layers.peft_lora import lora_layers, weight_shape
from balora.methods.registry import AdaptOptions

_BLOCK = 64


def check_dora(model: nn.Module, options: AdaptOptions) -> None:
    """Refuse layers in 4 bits whose rows are not whole blocks: peft would take their lengths from wrongly widened weights.

    Raises:
        BALoraError: There is one.
    """
    for name, layer in lora_layers(model) if options.extra["bits"] == 4 else ():
        columns = weight_shape(layer)[1]
        if columns % _BLOCK:
            raise BALoraError(
                f"Method dora in 4 bits needs layers with a multiple of {_BLOCK} inputs, and {name} has {columns}: bitsandbytes "
                "widens such a weight wrongly on the CPU. Use bits: 8, or leave that layer out of target_modules."
            )
