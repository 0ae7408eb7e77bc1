"""PiSSA: start the adapter from the principal singular components, freeze the rest (eq. 1-3).

Our own start in place of peft's: seeded, stored with the checkpoint, and refused where it would be wrong.
Shapes: O output features, I input features, R adapter rank.
"""

from __future__ import annotations

import torch
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from balora.errors import BALoraError
from balora.methods.low_rank import ADAPTER, lora_layers, wrap
from balora.methods.registry import AdaptOptions
from balora.methods.svd import truncated_svd

SVD_CHOICES = ("auto", "exact", "randomized")


def build_pissa(model: PreTrainedModel, options: AdaptOptions) -> PeftModel:
    """Wrap with LoRA and move the principal components of every target into its factors.

    Options (``options.extra``): ``svd`` is ``auto`` (exact for small matrices), ``exact`` or ``randomized``;
    ``svd_iterations`` ≥ 0 power iterations of the randomised one.

    Raises:
        BALoraError: A target is quantized, shares its weight with another module, or is no weight matrix.
    """
    svd = options.extra.get("svd", "auto")
    iterations = options.extra.get("svd_iterations", 6)
    if svd not in SVD_CHOICES:
        raise BALoraError(f"method.svd is one of {', '.join(SVD_CHOICES)}, not {svd!r}.")
    if not isinstance(iterations, int) or isinstance(iterations, bool) or iterations < 0:
        raise BALoraError(f"method.svd_iterations is a whole number of at least 0, not {iterations!r}.")
    peft_model = wrap(model, options)
    try:
        refuse_unsuitable(peft_model)
    except BALoraError:
        peft_model.unload()
        raise
    for index, (_, layer) in enumerate(lora_layers(peft_model)):
        start_principal(layer, svd=svd, iterations=iterations, seed=options.seed + index)
    return peft_model


@torch.no_grad()
def start_principal(layer: LoraLayer, *, svd: str, iterations: int, seed: int) -> None:
    r"""Set a LoRA layer's factors to the principal components of its weight and subtract them from it (eq. 1-3).

    .. math:: B_0 = U_{:r} S_{:r}^{1/2} / \sqrt{s}, \quad A_0 = S_{:r}^{1/2} V_{:r}^\top / \sqrt{s}, \quad W_{res} = W - s B_0 A_0

    Args:
        layer: A peft LoRA layer over a linear map (either storage order).
        svd: ``auto``, ``exact`` or ``randomized``.
        iterations: Power iterations of the randomised one.
        seed: Of its sketch.

    Reference: Meng et al., PiSSA, 2024; Chang et al., BA-LoRA, ICLR 2026, eq. 1-3.
    """
    weight_OI = full_weight(layer)
    if weight_OI.is_meta:  # a model built for its sizes alone
        return
    scaling = layer.scaling[ADAPTER]
    left_OR, values_R, right_RI = truncated_svd(
        weight_OI, layer.r[ADAPTER], method=svd, iterations=iterations, seed=seed
    )
    root_R = (values_R / scaling).sqrt()
    set_factors(layer, root_R[:, None] * right_RI, left_OR * root_R)
    shift_base(layer, weight_OI)


@torch.no_grad()
def set_factors(layer: LoraLayer, factor_a_RI: Tensor, factor_b_OR: Tensor) -> None:
    """Write A and B of a LoRA layer, in the layer's own dtype and on its device."""
    for factor, values in ((layer.lora_A, factor_a_RI), (layer.lora_B, factor_b_OR)):
        factor[ADAPTER].weight.data.copy_(values)  # type: ignore[union-attr, operator]


@torch.no_grad()
def shift_base(layer: LoraLayer, weight_OI: Tensor) -> None:
    """Freeze W − s·B₀A₀ in place of W, from the factors *as stored*, so that rounding them does not move the function."""
    factor_a_RI, factor_b_OR = (f[ADAPTER].weight.float() for f in (layer.lora_A, layer.lora_B))  # type: ignore[operator]
    residual_OI = weight_OI - layer.scaling[ADAPTER] * (factor_b_OR @ factor_a_RI)
    base = layer.get_base_layer()
    base.weight.data.copy_(residual_OI.T if layer.fan_in_fan_out else residual_OI)  # type: ignore[union-attr, operator]


def full_weight(layer: LoraLayer) -> Tensor:
    """The wrapped weight as (out, in) in float32, whichever way round it is stored."""
    weight: Tensor = layer.get_base_layer().weight  # type: ignore[assignment]
    return (weight.T if layer.fan_in_fan_out else weight).float()


def refuse_unsuitable(model: nn.Module) -> None:
    """Refuse targets whose frozen weight cannot be shifted: quantized, shared, or not a matrix.

    Raises:
        BALoraError: One such target is found; it is named with the way out.
    """
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    for name, layer in lora_layers(model):
        base = layer.get_base_layer()
        weight = getattr(base, "weight", None)
        if weight is None or (weight.is_floating_point() and weight.dim() != 2):
            raise BALoraError(
                f"{name} holds no weight matrix (stacked experts do not), and a PiSSA start needs one. Name the layers to "
                "adapt in target_modules, such as [q_proj, k_proj, v_proj, o_proj], or use method 'lora'."
            )
        if not weight.is_floating_point() or weight.element_size() < 2:
            raise BALoraError(
                f"{name} is quantized, and its principal components cannot be taken out of rounded weights. Load the "
                "model in bfloat16 or float32 for a PiSSA start, or use method 'lora' on the quantized one."
            )
        if len(owners[id(weight)]) > 1:
            raise BALoraError(
                f"{name} shares its weight with {owners[id(weight)][0]} (tied embeddings), which a PiSSA start would "
                "change too. Leave it out of target_modules, or untie the embeddings first."
            )
