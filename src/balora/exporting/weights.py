"""The change that training made to the pre-trained weights, as low-rank factors and fully trained modules.

A LoRA file stores the change; a merged model has it added. Shapes: O output features, I input features, R rank, E experts.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel
from peft.tuners.adalora.layer import AdaLoraLayer
from peft.tuners.lora.layer import Embedding, LoraLayer, ParamWrapper
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from balora.errors import BALoraError
from balora.exporting.rounding import Rounding, round_tensors
from balora.methods.initial_state import trainable_parameters
from balora.methods.layers.peft_lora import lora_layers, target_name
from balora.methods.layers.weight_views import experts_of, factor, is_stack, join_a, join_b, split_a, split_b
from balora.methods.quantization.quantize import dequantize
from balora.methods.target_modules import reserved_for_experts
from balora.models.adapted_model import ADAPTER

PREFIX = "base_model.model."
"""Prefix that peft adds to the parameter names of the pre-trained model."""
_MODULES = f".modules_to_save.{ADAPTER}."
_TOKENS = ".token_adapter.trainable_tokens_delta"


@dataclasses.dataclass(frozen=True)
class Factors:
    """Low-rank change s·B·A of one weight. A stack of experts has E × R × I and E × O × R."""

    a_RI: Tensor
    b_OR: Tensor
    scaling: float
    weight: str
    """Name of the weight in the pre-trained model."""
    transposed: bool = False
    """True if the model stores the weight as I × O."""
    embedding: bool = False
    """True if peft stores the factors under its keys for embeddings."""
    magnitude_O: Tensor | None = None
    """DoRA's magnitude m: the norm of each row of the changed weight."""

    def delta(self) -> Tensor:
        """Return s·B·A, (E ×) O × I, in float32."""
        return self.scaling * (self.b_OR.float() @ self.a_RI.float())

    def folded(self, rank: int) -> Factors:
        """Return the same change with scaling 1, padded with zeros to a rank. Half precision becomes float32."""
        missing = rank - self.a_RI.shape[-2]
        a_RI = self.a_RI.to(torch.promote_types(self.a_RI.dtype, torch.float32))
        b_OR = self.scaling * self.b_OR.to(torch.promote_types(self.b_OR.dtype, torch.float32))
        a_RI, b_OR = nn.functional.pad(a_RI, (0, 0, 0, missing)), nn.functional.pad(b_OR, (0, missing))
        return dataclasses.replace(self, a_RI=a_RI, b_OR=b_OR, scaling=1.0)

    def add_to(self, weight: Tensor) -> Tensor:
        """Return a weight with the change added, in the layout of the model and in float32."""
        weight_OI = (weight.transpose(-1, -2) if self.transposed else weight).float()
        weight_OI = weight_OI + self.delta().to(weight.device)
        if self.magnitude_O is not None:
            weight_OI = weight_OI * (self.magnitude_O.to(weight_OI) / weight_OI.norm(dim=1))[:, None]
        return weight_OI.transpose(-1, -2) if self.transposed else weight_OI


@dataclasses.dataclass(frozen=True)
class Change:
    """Everything that training changed, on the CPU, under the names of the pre-trained model."""

    factors: dict[str, Factors]
    """Low-rank changes by the layer's name under peft."""
    modules: dict[str, Tensor]
    """Tensors of fully trained modules (a classification head) by parameter name."""
    tokens: dict[str, Tensor]
    """Trained rows of embeddings (``trainable_token_indices`` of ``config``) by the name of the embedding's module."""
    config: LoraConfig
    """peft's config of the LoRA that `write_lora` writes: alpha = rank, and the same rank in every layer."""

    def scaled(self, scale: float) -> Change:
        """Return the change with its low-rank part multiplied by a number."""
        factors = {n: dataclasses.replace(f, scaling=scale * f.scaling) for n, f in self.factors.items()}
        return dataclasses.replace(self, factors=factors)


@torch.no_grad()
def change_of(model: PeftModel, initial: Mapping[str, Tensor] | None = None) -> Change:
    r"""Read the change that training made from an adapted model.

    If the method moved a part of the weights into the adapter, the change of the pre-trained weights is

    .. math:: B' A' = B A - B_0 A_0, \quad \mathrm{rank} \le 2r

    ``initial`` has the initial values by parameter name; None if B₀A₀ = 0, and the rank is r. After AdaLoRA each layer has
    its own rank, and a layer of which nothing is left is omitted if another one has a rank.
    """
    layers = ((n.removeprefix(PREFIX), m) for n, m in model.named_modules() if isinstance(m, LoraLayer))
    factors = {
        name: _factors(name, layer, initial)
        for name, layer in layers
        if ADAPTER in layer.lora_A or ADAPTER in layer.lora_embedding_A
    }
    modules = {
        name.removeprefix(PREFIX).replace(_MODULES, "."): parameter.detach().cpu().clone()
        for name, parameter in trainable_parameters(model)
        if _MODULES in name
    }
    tokens = {
        name.removeprefix(PREFIX).removesuffix(f"{_TOKENS}.{ADAPTER}"): parameter.detach().cpu().clone()
        for name, parameter in trainable_parameters(model)
        if name.endswith(f"{_TOKENS}.{ADAPTER}")
    }
    if isinstance(model.peft_config[ADAPTER], AdaLoraConfig):
        factors = {name: found for name, found in factors.items() if found.a_RI.shape[0] > 0} or factors
    return Change(factors, modules, tokens, _plain_config(model, factors))


def _factors(name: str, layer: LoraLayer, initial: Mapping[str, Tensor] | None) -> Factors:
    embedding = isinstance(layer, Embedding)
    kinds = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
    pair = [factor(getattr(layer, kind)[ADAPTER]) for kind in kinds]
    initial_pair = [] if initial is None else [_initial(initial, name, kind) for kind in kinds]
    scaling = float(layer.scaling[ADAPTER])
    if isinstance(layer, AdaLoraLayer):
        kept = layer.lora_E[ADAPTER].detach().flatten() != 0
        pair = [(pair[0] * layer.lora_E[ADAPTER].detach())[kept], pair[1][:, kept]]
        scaling /= float(layer.ranknum[ADAPTER]) + 1e-5  # as peft computes it
    stack = is_stack(layer)
    if stack:
        pair, initial_pair = _split(layer, pair), _split(layer, initial_pair)
    if initial_pair:
        pair = list(factor_difference(*pair, *initial_pair))
    a_RI, b_OR = (tensor.detach().cpu().clone() for tensor in pair)
    magnitude, base = getattr(layer, "lora_magnitude_vector", {}), layer.get_base_layer()
    transposed = isinstance(base, Conv1D | nn.Embedding) or getattr(base, "transposed", False)
    transposed = transposed or (stack and not layer._did_swap_in_out_features)  # type: ignore[union-attr]
    target = target_name(name, layer)
    return Factors(
        a_RI,
        b_OR,
        scaling,
        weight=target if isinstance(layer, ParamWrapper) else f"{target}.weight",
        transposed=transposed,
        embedding=embedding,
        magnitude_O=magnitude[ADAPTER].weight.detach().cpu().clone() if ADAPTER in magnitude else None,
    )


def factor_difference(a_RI: Tensor, b_OR: Tensor, a0_RI: Tensor, b0_OR: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return factors of BA − B₀A₀ of rank 2R, balanced: A' and B' have the same singular values.

    [B, B₀] and [A; −A₀] have the same product, but their entries are as large as the principal part of the pre-trained
    weight, so rounding them (a server that keeps adapters in bfloat16) costs as much as rounding that part. With
    balanced factors, rounding costs in proportion to the change.

    Returns:
        A' (2R × I) and B' (O × 2R), or stacks of them (E × 2R × I and E × O × 2R) if the arguments are stacks.

    Example:
        >>> a, b = factor_difference(torch.eye(1, 3), torch.ones(4, 1), torch.eye(1, 3), torch.zeros(4, 1))
        >>> a.shape, b.shape, bool(torch.allclose(b @ a, torch.ones(4, 1) @ torch.eye(1, 3)))
        (torch.Size([2, 3]), torch.Size([4, 2]), True)
    """
    # On the CPU in float64: the two products nearly cancel, and some accelerators have no float64.
    both_b = torch.cat([b_OR, b0_OR.to(b_OR)], -1).cpu().double()
    both_a = torch.cat([a_RI, -a0_RI.to(a_RI)], -2).cpu().double()
    rank = both_a.shape[-2]
    left, left_r = torch.linalg.qr(both_b)
    right, right_r = torch.linalg.qr(both_a.mT)
    u, values, vt = torch.linalg.svd(left_r @ right_r.mT, full_matrices=False)
    root = values.sqrt()
    new_b, new_a = left @ (u * root[..., None, :]), (root[..., :, None] * vt) @ right.mT
    # A layer narrower than 2R has a lower rank; the rest is zero.
    missing = rank - values.shape[-1]
    new_b, new_a = nn.functional.pad(new_b, (0, missing)), nn.functional.pad(new_a, (0, 0, 0, missing))
    return new_a.to(a_RI.dtype), new_b.to(b_OR.dtype)


def write_lora(
    change: Change, folder: Path, base: str | None, revision: str | None, dtype: torch.dtype | None = None
) -> Rounding | None:
    """Write a change as a plain LoRA in peft's format. ``base`` is the hub id or directory of the pre-trained model.

    With a ``dtype`` the tensors are rounded to it, and the error is returned; by default they keep theirs.

    Some servers read only ``lora_alpha`` and ``r``, so the change is B·A in every layer: the scaling is in B, alpha is the
    rank, and layers of a lower rank are padded with zeros.
    """
    state = {}
    for name, unfolded in change.factors.items():
        factors = unfolded.folded(change.config.r)
        stack = factors.a_RI.dim() == 3
        a, b = (join_a(factors.a_RI), join_b(factors.b_OR)) if stack else (factors.a_RI, factors.b_OR)
        for kind, tensor in (("A", a), ("B", b)):
            key = f"lora_embedding_{kind}" if factors.embedding else f"lora_{kind}.weight"
            state[f"{PREFIX}{name}.{key}"] = tensor.contiguous()
        if factors.magnitude_O is not None:
            state[f"{PREFIX}{name}.lora_magnitude_vector"] = factors.magnitude_O
    state |= {f"{PREFIX}{name}": tensor.contiguous() for name, tensor in change.modules.items()}
    state |= {f"{PREFIX}{name}{_TOKENS}": tensor.contiguous() for name, tensor in change.tokens.items()}
    rounding = None
    if dtype is not None:
        state, rounding = round_tensors(state, dtype)
    save_file(state, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
    config = copy.deepcopy(change.config)
    config.base_model_name_or_path, config.revision = base, revision
    values = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    (folder / CONFIG_NAME).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return rounding


@torch.no_grad()
def merge_into(model: nn.Module, change: Change) -> None:
    """Add a change to the weights of the pre-trained model: summed in float32, rounded once.

    A weight that is quantized, is no matrix, or is shared with another layer raises `BALoraError`.
    """
    parameters, owners = dict(model.named_parameters(remove_duplicate=False)), dict[int, list[str]]()
    for name, parameter in parameters.items():
        owners.setdefault(id(parameter), []).append(name)
    for factors in change.factors.values():
        weight = parameters.get(factors.weight)
        if weight is None or not weight.is_floating_point() or weight.dim() not in (2, 3):
            raise BALoraError(
                f"{factors.weight} is no plain weight matrix (it may be quantized), so the change cannot be added to it exactly. "
                "Export with --to lora; peft's merge_and_unload may take it from there."
            )
        if len(owners[id(weight)]) > 1:
            other = next(owner for owner in owners[id(weight)] if owner != factors.weight)
            raise BALoraError(
                f"{factors.weight.removesuffix('.weight')} shares its weight with {other}, which a merged change would alter "
                "too. Export with --to lora."
            )
        weight.copy_(factors.add_to(weight))
    for name, tensor in change.modules.items():
        parameters[name].copy_(tensor)
    for name, rows in change.tokens.items():
        weight = parameters[f"{name}.weight"]
        weight[change.config.trainable_token_indices] = rows.to(weight)


@torch.no_grad()
def unwrapped_copy(model: PeftModel, initial: Mapping[str, Tensor] | None, *, dequantized: bool = False) -> nn.Module:
    """Copy the model under an adapter; the ``initial`` values of the adapter restore the weights that the method moved into it.

    Weights in 4 or 8 bits become ordinary ones with ``initial`` or ``dequantized``.
    """
    base = copy.deepcopy(model).unload()
    if dequantized or initial is not None:
        dequantize(base, model.dtype)
    if initial is not None:
        factors = {name: initial_factors(name, layer, initial) for name, layer in lora_layers(model)}
        merge_into(base, Change(factors, {}, {}, _plain_config(model, factors)))
    return base


def _split(layer: LoraLayer, pair: list[Tensor]) -> list[Tensor]:
    """Return A and B of a stack of experts as E × R × I and E × O × R."""
    return [f(t, experts_of(layer)) for f, t in zip((split_a, split_b), pair, strict=False)]


def initial_factors(name: str, layer: LoraLayer, initial: Mapping[str, Tensor]) -> Factors:
    """Return the initial factors s·B₀·A₀ of one layer."""
    pair = [_initial(initial, name, kind) for kind in ("lora_A", "lora_B")]
    pair = _split(layer, pair) if is_stack(layer) else pair
    return dataclasses.replace(_factors(name, layer, None), a_RI=pair[0], b_OR=pair[1])


def _initial(initial: Mapping[str, Tensor], name: str, kind: str) -> Tensor:
    ending = "" if "embedding" in kind else ".weight"
    return initial[f"{PREFIX}{name}.{kind}.{ADAPTER}{ending}"]


def _plain_config(model: PeftModel, factors: Mapping[str, Factors]) -> LoraConfig:
    """Return the config of a plain LoRA with the largest rank of the factors, and with B·A as the change of each weight."""
    config = copy.deepcopy(model.peft_config[ADAPTER])
    assert isinstance(config, LoraConfig)
    if isinstance(config, AdaLoraConfig):
        reserved = reserved_for_experts(model, factors)
        config = LoraConfig(
            target_modules=[name for name in factors if name not in reserved],
            target_parameters=[f"{name}.weight" for name in reserved] or None,
            modules_to_save=config.modules_to_save,
            fan_in_fan_out=config.fan_in_fan_out,
            task_type=config.task_type,
        )
    config.r = config.lora_alpha = max((found.a_RI.shape[-2] for found in factors.values()), default=1) or 1
    config.use_rslora, config.rank_pattern, config.alpha_pattern = False, {}, {}
    config.init_lora_weights = True
    config.inference_mode = True
    return config
