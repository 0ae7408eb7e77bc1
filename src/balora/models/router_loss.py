"""Load-balancing loss of mixture-of-experts models, which transformers adds to its own loss if output_router_logits is true."""

from typing import Any

from torch import Tensor, nn

from balora.errors import BALoraError
from balora.models.adapted_model import base_model_of

_COEFFICIENTS = (
    "router_aux_loss_coef",
    "aux_loss_coef",
)  # JetMoe has the second; DBRX has the first on the model alone
_HOW = "Set output_router_logits to false in the model's config (method lora and the like do not train the routers anyway)."


def router_loss(model: nn.Module, outputs: Any) -> Tensor | None:
    """Return the weighted load-balancing loss that a model's config asks for; None if it asks for none.

    Raises:
        BALoraError: The config asks for it, and the outputs have no such loss or its weight is not known.
    """
    base = base_model_of(model)
    configs = [base.config, base.config.get_text_config()]
    if not any(getattr(config, "output_router_logits", False) for config in configs):
        return None
    name = type(base).__name__
    if base.config.is_encoder_decoder:
        return _encoder_decoder_loss(base, outputs, name)
    loss = getattr(outputs, "aux_loss", None)
    if loss is None:
        raise BALoraError(f"output_router_logits is true, but {name} returns no load-balancing loss. {_HOW}")
    return loss * _coefficient(base, configs, name) if isinstance(loss, Tensor) else None


def _encoder_decoder_loss(base: Any, outputs: Any, name: str) -> Tensor | None:
    """Return the loss of Switch Transformers: the load-balancing loss and the z-loss of encoder and decoder."""
    parts: dict[str, list[Any]] = {
        key: [getattr(outputs, f"{side}_{key}", None) for side in ("encoder", "decoder")]
        for key in ("aux_loss", "z_loss")
    }
    if any(loss is None for loss in parts["aux_loss"]):
        raise BALoraError(f"output_router_logits is true, but {name} returns no load-balancing loss. {_HOW}")
    total = _coefficient(base, [base.config], name) * sum(parts["aux_loss"])
    if all(loss is not None for loss in parts["z_loss"]):
        total = total + base.config.router_z_loss_coef * sum(parts["z_loss"])
    return total if isinstance(total, Tensor) else None


def _coefficient(base: Any, configs: list[Any], name: str) -> float:
    for owner in (base, *configs):
        for key in _COEFFICIENTS:
            value = getattr(owner, key, None)
            if isinstance(value, int | float):
                return float(value)
    raise BALoraError(
        f"output_router_logits is true, but the weight of {name}'s load-balancing loss is not known. {_HOW}"
    )
