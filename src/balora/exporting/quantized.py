"""Export a LoRA from a model whose frozen weights are in 4 or 8 bits: its base, and the outputs it must agree with.

If the method left the pre-trained weights unchanged (qlora), the LoRA is exact on the base in the same bits. If it moved a
part of them into the adapter (qpissa, qbalora), no base that can be loaded holds the quantized residual. The LoRA is then
the difference to the full-precision weights, and equals the trained adapter on the residual before quantization.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence

import torch
from peft import PeftModel
from torch import Tensor, nn

from balora.errors import BALoraError
from balora.exporting.verification import Probe, compare, probe_outputs
from balora.exporting.weights import PREFIX, initial_factors
from balora.methods.layers.peft_lora import lora_layers
from balora.methods.quantization.quantize import LARGEST_ERROR, Quantized


def lora_reference(
    model: nn.Module,
    base: nn.Module | None,
    initial: Mapping[str, Tensor] | None,
    probe: Probe,
    trained: Sequence[Tensor],
) -> tuple[list[Tensor], str]:
    """Return the outputs that a LoRA from a quantized model must agree with, and a note for the user.

    Args:
        model: The trained model.
        base: The pre-trained model in full precision, if the method moved a part of it into the adapter; else None.
        initial: Initial values of the adapter, if ``base`` is given.
        probe: Inputs of the comparison.
        trained: Outputs of ``model`` on the probe.

    Raises:
        BALoraError: ``base`` is another model than the one that was quantized.
    """
    bits = next(module.bits for module in model.modules() if isinstance(module, Quantized))
    if base is None or initial is None:
        return list(trained), f"Load the base in {bits} bits, as it was trained on; the README there shows how."
    assert isinstance(model, PeftModel)
    exact = probe_outputs(_unquantized(model, base, initial), probe)
    moved = (
        f", which moves its logits by up to {compare(exact, trained, model.dtype).largest_difference:.2g}"
        if probe
        else ""
    )
    return exact, (
        "It is for the base in full precision: compared with the trained adapter on the weights as they were before they were "
        f"rounded to {bits} bits{moved}. --to merged keeps them rounded."
    )


@torch.no_grad()
def _unquantized(model: PeftModel, base: nn.Module, initial: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of the trained model with its frozen weights as they were before quantization.

    Args:
        model: The trained model; unchanged.
        base: The pre-trained model in full precision.
        initial: Initial values of the adapter.

    Raises:
        BALoraError: The quantized weights are not those of this base.
    """
    twin = copy.deepcopy(model)
    adapted = dict(lora_layers(twin))
    for name, module in list(twin.named_modules()):
        if not isinstance(module, Quantized):
            continue
        own = name.removeprefix(PREFIX).removesuffix(".base_layer")
        weight = base.get_submodule(own).weight
        assert isinstance(weight, Tensor)
        dtype = weight.dtype
        if own in adapted:
            factors = initial_factors(own, adapted[own], initial)
            weight = dataclasses.replace(factors, scaling=-factors.scaling).add_to(weight)
        plain = module.plain(dtype)
        assert isinstance(plain.weight, nn.Parameter)
        error = float(torch.dist(plain.weight.float(), weight.float()) / weight.float().norm().clamp_min(1e-12))
        if not error <= LARGEST_ERROR[module.bits]:
            raise BALoraError(
                f"{own} of the pre-trained model is {error:.2g} of its norm away from what was trained on in {module.bits} bits, "
                "more than rounding makes: it is another model's. Name the one that was trained with base=."
            )
        plain.weight.copy_(weight)
        twin.set_submodule(name, plain)
    return twin
