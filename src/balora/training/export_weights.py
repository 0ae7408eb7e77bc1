"""What training changed, as factors and whole modules on top of the pre-trained weights.

A LoRA file holds them as they are; a merged model has them added. Shapes: O output features, I input features, R rank.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora.layer import Embedding, LoraLayer
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from balora.errors import BALoraError
from balora.methods.low_rank import ADAPTER
from balora.methods.start import trainable

_PREFIX = "base_model.model."
_MODULES = f".modules_to_save.{ADAPTER}."


@dataclasses.dataclass(frozen=True)
class Factors:
    """s·B·A on one layer."""

    a_RI: Tensor
    b_OR: Tensor
    scaling: float
    embedding: bool = False
    """Whether peft files it under its name for embeddings."""

    def delta(self) -> Tensor:
        """s·B·A, O × I, in float32."""
        return self.scaling * (self.b_OR.float() @ self.a_RI.float())


@dataclasses.dataclass(frozen=True)
class Change:
    """Everything that training changed, on the CPU; names are those of the pre-trained model."""

    factors: dict[str, Factors]
    """By layer."""
    modules: dict[str, Tensor]
    """Tensors of modules that were trained whole (a classification head), by parameter."""
    config: LoraConfig
    """For a plain LoRA of these factors."""


@torch.no_grad()
def change_of(model: PeftModel, initial: Mapping[str, Tensor] | None = None) -> Change:
    r"""Read from an adapted model what training changed.

    For a method that moves part of the weights into the adapter, the change on top of the pre-trained weights is

    .. math:: s' B' A' = s (B A - B_0 A_0), \quad \mathrm{rank} \le 2r, \quad \alpha' = 2 \alpha

    Args:
        model: The trained model.
        initial: The initial values by parameter name, to be subtracted; None where they give nothing (B₀A₀ = 0).

    Returns:
        The change; rank r, or 2r with ``initial``.
    """
    factors = {}
    for name, layer in _layers(model):
        kinds = ("lora_embedding_A", "lora_embedding_B") if isinstance(layer, Embedding) else ("lora_A", "lora_B")
        now = [_tensor(getattr(layer, kind)[ADAPTER]) for kind in kinds]
        if initial is not None:
            ending = "" if isinstance(layer, Embedding) else ".weight"
            start = [initial[f"{_PREFIX}{name}.{kind}.{ADAPTER}{ending}"] for kind in kinds]
            now = list(difference(*now, *start))
        a_RI, b_OR = (factor.detach().cpu().clone() for factor in now)
        factors[name] = Factors(a_RI, b_OR, float(layer.scaling[ADAPTER]), isinstance(layer, Embedding))
    modules = {
        name.removeprefix(_PREFIX).replace(_MODULES, "."): parameter.detach().cpu().clone()
        for name, parameter in trainable(model)
        if _MODULES in name
    }
    return Change(factors, modules, _plain_config(model, doubled=initial is not None))


def difference(a_RI: Tensor, b_OR: Tensor, a0_RI: Tensor, b0_OR: Tensor) -> tuple[Tensor, Tensor]:
    r"""Factors of BA − B₀A₀, twice as many, balanced: A' and B' have the same singular values.

    Side by side, [B, B₀] and [A; −A₀] have the same product, but each half is as large as the pre-trained weight's
    principal part, so that rounding the factors (a server that holds adapters in bfloat16) costs as much as rounding
    that. Balanced, rounding costs in proportion to the change itself.

    Args:
        a_RI: A as trained.
        b_OR: B as trained.
        a0_RI: A at the start.
        b0_OR: B at the start.

    Returns:
        (A': 2R × I, B': O × 2R), in the dtype of ``a_RI``.

    Example:
        >>> a, b = difference(torch.eye(1, 3), torch.ones(4, 1), torch.eye(1, 3), torch.zeros(4, 1))
        >>> a.shape, b.shape, bool(torch.allclose(b @ a, torch.ones(4, 1) @ torch.eye(1, 3)))
        (torch.Size([2, 3]), torch.Size([4, 2]), True)
    """
    # On the CPU in float64: the two products nearly cancel, and some accelerators have no float64.
    both_b = torch.cat([b_OR, b0_OR.to(b_OR)], 1).cpu().double()
    both_a = torch.cat([a_RI, -a0_RI.to(a_RI)], 0).cpu().double()
    rank = both_a.shape[0]
    left, left_r = torch.linalg.qr(both_b)
    right, right_r = torch.linalg.qr(both_a.T)
    u, values, vt = torch.linalg.svd(left_r @ right_r.T, full_matrices=False)
    root = values.sqrt()
    new_b, new_a = left @ (u * root), (root[:, None] * vt) @ right.T
    # A layer narrower than 2R has fewer directions than that; peft wants one rank for all, so the rest is zero.
    missing = rank - len(values)
    new_b, new_a = nn.functional.pad(new_b, (0, missing)), nn.functional.pad(new_a, (0, 0, 0, missing))
    return new_a.to(a_RI.dtype), new_b.to(b_OR.dtype)


def write_lora(change: Change, folder: Path, base: str | None, revision: str | None) -> None:
    """Write a change in peft's format, with nothing in it that needs balora.

    Args:
        change: From `change_of`.
        folder: Exists.
        base: Hub id or folder of the pre-trained model.
        revision: Of a hub model.
    """
    state = {}
    for name, factors in change.factors.items():
        for kind, tensor in (("A", factors.a_RI), ("B", factors.b_OR)):
            key = f"lora_embedding_{kind}" if factors.embedding else f"lora_{kind}.weight"
            state[f"{_PREFIX}{name}.{key}"] = tensor.contiguous()
    state |= {f"{_PREFIX}{name}": tensor.contiguous() for name, tensor in change.modules.items()}
    save_file(state, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
    config = copy.deepcopy(change.config)
    config.base_model_name_or_path, config.revision = base, revision
    values = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    (folder / CONFIG_NAME).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


@torch.no_grad()
def merge_into(model: nn.Module, change: Change) -> None:
    """Add a change to the pre-trained model's own weights: summed in float32, rounded once.

    Args:
        model: The pre-trained model, its weights as they were before the adapter; changed in place.
        change: From `change_of`.

    Raises:
        BALoraError: A weight is quantized, is no matrix, or belongs to other layers too; the way out is named.
    """
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    for name, factors in change.factors.items():
        layer = model.get_submodule(name)
        weight = getattr(layer, "weight", None)
        if not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.dim() != 2:
            raise BALoraError(
                f"{name} holds no plain weight matrix (it is quantized, or stacks several), so the change cannot be added "
                "to it exactly. Export with --to lora; peft's merge_and_unload may take it from there."
            )
        if len(owners[id(weight)]) > 1:
            other = next(owner for owner in owners[id(weight)] if owner != f"{name}.weight")
            raise BALoraError(
                f"{name} shares its weight with {other}, which a merged change would alter too. Export with --to lora."
            )
        delta_OI = factors.delta().to(weight.device)
        turned = isinstance(layer, Conv1D | nn.Embedding)  # these store I × O
        weight.copy_(weight.float() + (delta_OI.T if turned else delta_OI))
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, tensor in change.modules.items():
        parameters[name].copy_(tensor)


@torch.no_grad()
def unwrapped_copy(model: PeftModel, initial: Mapping[str, Tensor] | None) -> nn.Module:
    """A copy of the model under the adapter, with what the start took out of its weights put back.

    Args:
        model: An adapted model; it stays as it is.
        initial: The initial values, None where the start took nothing out.
    """
    base = copy.deepcopy(model).unload()
    if initial is not None:
        start = {
            name: Factors(
                initial[f"{_PREFIX}{name}.lora_A.{ADAPTER}.weight"],
                initial[f"{_PREFIX}{name}.lora_B.{ADAPTER}.weight"],
                float(layer.scaling[ADAPTER]),
            )
            for name, layer in _layers(model)
            if not isinstance(layer, Embedding)
        }
        merge_into(base, Change(start, {}, _plain_config(model, doubled=False)))
    return base


def _layers(model: PeftModel) -> Iterator[tuple[str, LoraLayer]]:
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and (ADAPTER in module.lora_A or ADAPTER in module.lora_embedding_A):
            yield name.removeprefix(_PREFIX), module


def _tensor(factor: Any) -> Tensor:
    tensor = factor.weight if isinstance(factor, nn.Module) else factor
    assert isinstance(tensor, Tensor)
    return tensor


def _plain_config(model: PeftModel, *, doubled: bool) -> LoraConfig:
    config = copy.deepcopy(model.peft_config[ADAPTER])
    assert isinstance(config, LoraConfig)
    config.init_lora_weights = True
    config.inference_mode = True
    if doubled:
        # With s = alpha / r both double; rank-stabilised, s = alpha / √r.
        config.r *= 2
        config.lora_alpha *= 2**0.5 if config.use_rslora else 2  # type: ignore[assignment]
        config.rank_pattern = {key: 2 * value for key, value in config.rank_pattern.items()}
        factor = 2**0.5 if config.use_rslora else 2
        config.alpha_pattern = {key: factor * value for key, value in config.alpha_pattern.items()}
    return config
