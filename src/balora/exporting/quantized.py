"""Exporting a model whose frozen weights are in 4 or 8 bits: which base its LoRA is for, and what it is compared with.

Under a method that leaves the pre-trained weights where they are (qlora), the base in the same bits is what the factors were
trained on, so the LoRA is for that and exact. Under one that moves part of them into the adapter (qpissa, qbalora), the
rounded residual is in no base that can be loaded. The LoRA is then the difference to the full-precision weights, and what is
exact is that it is the trained adapter on the residual before it was rounded.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import BitsAndBytesConfig

from balora.errors import BALoraError
from balora.exporting.base_model import PlainBase
from balora.exporting.verification import Probe, compare, probe_outputs
from balora.exporting.weights import PREFIX, initial_factors
from balora.methods.initial_state import initial_state_of
from balora.methods.layers.peft_lora import lora_layers
from balora.methods.quantization.quantize import MAX_RELATIVE_ERROR
from balora.methods.quantization.quantized_linear import QuantizedLinear
from balora.models.adapted_model import base_model_of


def bits_of(model: nn.Module) -> int | None:
    """In how many bits a model's frozen weights are, None for ordinary ones."""
    return next((module.bits for module in model.modules() if isinstance(module, QuantizedLinear)), None)


def loading_config(model: nn.Module) -> BitsAndBytesConfig | None:
    """How transformers rounds the pre-trained weights as an adapted model's are; None where they are not, or came so."""
    bits, start = bits_of(model), initial_state_of(model)
    inner = base_model_of(model)
    if bits is None or start is None or start.residual_base or hasattr(inner.config, "quantization_config"):
        return None
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=start.options.extra["double_quantization"],
        bnb_4bit_compute_dtype=inner.dtype,  # type: ignore[arg-type]
    )


def loading_code(rounding: BitsAndBytesConfig | None) -> tuple[str, str]:
    """An import, and the line that says in how few bits a base is to be loaded, for a card; nothing without such."""
    if rounding is None:
        return "", ""
    if rounding.load_in_8bit:
        return "from transformers import BitsAndBytesConfig\n", "bits = BitsAndBytesConfig(load_in_8bit=True)\n"
    dtype, double = rounding.bnb_4bit_compute_dtype, rounding.bnb_4bit_use_double_quant
    told = f'load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant={double}, bnb_4bit_compute_dtype={dtype}'
    return "import torch\nfrom transformers import BitsAndBytesConfig\n", f"bits = BitsAndBytesConfig({told})\n"


@torch.no_grad()
def unrounded(model: PeftModel, base: nn.Module, initial: Mapping[str, Tensor]) -> nn.Module:
    """The trained model with its frozen weights as they were before they were rounded.

    Args:
        model: The trained model; it stays as it is.
        base: The pre-trained model in full precision.
        initial: The adapter's initial values.

    Raises:
        BALoraError: The rounded weights are not those of this base.
    """
    twin = copy.deepcopy(model)
    adapted = dict(lora_layers(twin))
    for name, module in list(twin.named_modules()):
        if not isinstance(module, QuantizedLinear):
            continue
        own = name.removeprefix(PREFIX).removesuffix(".base_layer")
        weight = base.get_submodule(own).weight
        assert isinstance(weight, Tensor)
        dtype = weight.dtype
        if own in adapted:
            start = initial_factors(own, adapted[own], initial)
            weight = dataclasses.replace(start, scaling=-start.scaling).add_to(weight)
        plain = module.to_linear(dtype)
        assert isinstance(plain.weight, nn.Parameter)
        error = float(torch.dist(plain.weight.float(), weight.float()) / weight.float().norm().clamp_min(1e-12))
        if not error <= MAX_RELATIVE_ERROR[module.bits]:
            raise BALoraError(
                f"{own} of the pre-trained model is {error:.2g} of its norm away from what was trained on in {module.bits} bits, "
                "more than rounding makes: it is another model's. Name the one that was trained with base=."
            )
        plain.weight.copy_(weight)
        twin.set_submodule(name, plain)
    return twin


def rounded_base(plain: PlainBase, model: nn.Module) -> tuple[PlainBase, int | None]:
    """A base, rounded as a model's weights are where they are in few bits, and in how many."""
    bits = bits_of(model)
    return (plain if bits is None else dataclasses.replace(plain, trained=model, rounding=loading_config(model))), bits


def in_few_bits(
    model: nn.Module,
    base: nn.Module | None,
    initial: Mapping[str, Tensor] | None,
    probe: Probe,
    trained: Sequence[Tensor],
) -> tuple[list[Tensor], str]:
    """What a LoRA from a model in few bits must agree with, and what has to be known of it.

    Args:
        model: The trained model.
        base: The pre-trained model in full precision, where the start moved part of it into the adapter; else None.
        initial: The adapter's initial values then.
        probe: To be compared on.
        trained: The model's outputs on it.

    Raises:
        BALoraError: ``base`` is another model.
    """
    bits = bits_of(model)
    if base is None or initial is None:
        return list(trained), f"Load the base in {bits} bits, as it was trained on; the README there shows how."
    assert isinstance(model, PeftModel)
    exact = probe_outputs(unrounded(model, base, initial), probe)
    apart = (
        f", which moves its logits by up to {compare(exact, trained, model.dtype).largest_difference:.2g}"
        if probe
        else ""
    )
    return exact, (
        f"It is for the base in full precision: compared with the trained adapter on the weights as they were before they were "
        f"rounded to {bits} bits{apart}. --to merged keeps them rounded."
    )
