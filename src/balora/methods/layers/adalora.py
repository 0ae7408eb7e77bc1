"""AdaLoRA through peft: P Λ Q, an orthogonality penalty, ranks pruned by importance on a schedule.

peft adds the penalty only to a loss that the model computes, and leaves the pruning call to the user. balora computes the
loss itself, so this module provides both as functions for the trainer.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from peft import AdaLoraConfig, PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from balora.errors import BALoraError
from balora.methods.layers.peft_lora import lora_layers, wrap_lora
from balora.methods.method import AdaptOptions
from balora.models.adapted_model import ADAPTER

_RANKS = "balora_adalora_ranks"
_SCORES = ("ipt", "exp_avg_ipt", "exp_avg_unc")


def wrap_adalora(model: PreTrainedModel, options: AdaptOptions) -> PeftModel:
    """Add P Λ Q with Λ = 0, and refuse a schedule that leaves no step or no rank to prune.

    Reference: Zhang et al., AdaLoRA, 2023, eq. 3-12.
    """
    steps, extra = options.total_steps, options.extra
    if not steps:
        raise BALoraError(
            "Method adalora prunes on a schedule and needs the number of optimizer steps: pass total_steps."
        )
    warmup, final = math.floor(extra["warmup"] * steps), math.floor(extra["final"] * steps)
    if warmup >= steps - final:
        raise BALoraError(
            f"Method adalora has no step left to prune in: of {steps} steps, warmup {extra['warmup']:g} takes {warmup} and final "
            f"{extra['final']:g} takes {final}. Lower one of them, or train longer."
        )
    initial = extra["initial_rank"] or math.ceil(1.5 * options.rank)
    if initial <= options.rank:
        raise BALoraError(
            f"Method adalora prunes from initial_rank {initial} down to rank {options.rank}, so there is nothing to prune. "
            "Set method.initial_rank above method.rank, or use method 'lora'."
        )
    return wrap_lora(
        model,
        options,
        kind=AdaLoraConfig,
        r=8,  # not used; peft warns about other values
        init_r=initial,
        target_r=options.rank,
        tinit=warmup,
        tfinal=final,
        deltaT=extra["interval"],
        beta1=extra["beta1"],
        beta2=extra["beta2"],
        orth_reg_weight=extra["orthogonality"],
        total_step=steps,
        rank_pattern=None,
    )


def allocate_ranks(model: nn.Module, step: int) -> None:
    """Score the singular values by their gradients, and set those beyond the budget to zero (eq. 8-12)."""
    config = _config(model)
    # The ranks are not left in the config: peft would prune the saved tensors by them, and a resumed run needs all tensors.
    config.rank_pattern = getattr(model, _RANKS, None)
    model.base_model.update_and_allocate(step)  # type: ignore[operator, union-attr]
    setattr(model, _RANKS, config.rank_pattern)
    config.rank_pattern = None


def orthogonality_penalty(model: nn.Module) -> Tensor:
    r"""Return the weighted mean Frobenius distance of :math:`P^\top P` and :math:`Q Q^\top` from the identity (eq. 4)."""
    distances = []
    for _, layer in lora_layers(model):
        p_OR, q_RI = layer.lora_B[ADAPTER], layer.lora_A[ADAPTER]
        distances += [_from_identity(p_OR.T @ p_OR), _from_identity(q_RI @ q_RI.T)]  # type: ignore[operator, union-attr]
    return float(_config(model).orth_reg_weight) * torch.stack(distances).mean()


def _from_identity(gram_RR: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(gram_RR - torch.eye(len(gram_RR), device=gram_RR.device, dtype=gram_RR.dtype))


def allocator_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the importance scores and the ranks after pruning, which a resumed run needs."""
    allocator: Any = model.base_model.rankallocator  # type: ignore[union-attr]
    state = {
        f"{kind}/{name}": value.detach().clone() for kind in _SCORES for name, value in getattr(allocator, kind).items()
    }
    ranks = getattr(model, _RANKS, None) or {}
    return state | {f"ranks/{name}": torch.as_tensor(mask).reshape(-1) for name, mask in ranks.items()}


def restore_allocator(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load the result of `allocator_state` into the model."""
    allocator: Any = model.base_model.rankallocator  # type: ignore[union-attr]
    device = next(model.parameters()).device
    for kind in _SCORES:
        prefix = f"{kind}/"
        scores = {n.removeprefix(prefix): v.to(device) for n, v in state.items() if n.startswith(prefix)}
        setattr(allocator, kind, scores)
    ranks = {name.removeprefix("ranks/"): mask.tolist() for name, mask in state.items() if name.startswith("ranks/")}
    setattr(model, _RANKS, ranks or None)


def _config(model: nn.Module) -> AdaLoraConfig:
    config = model.peft_config[ADAPTER]  # type: ignore[index, union-attr]
    assert isinstance(config, AdaLoraConfig)
    return config
