"""Decide if a causal language model keeps packed examples apart.

Most families of transformers read the borders of examples off ``position_ids``. Others carry a state from one example into the
next (Mamba), or ignore positions. The check runs the model, so that it holds for every family and attention implementation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from balora.errors import BALoraError
from balora.models.adapted_model import base_model_of, evaluating

_FIRST, _SECOND = 5, 7
"""Tokens of the two examples of the check."""
_LEAK = {4: 1e-5, 2: 2e-2}
"""Largest difference of logits, relative to the largest logit, by the size of a value in bytes, if another example changes.
The kernels see the same shapes, so it is 0 for most of them."""
_ROUNDING = {4: 1e-4, 2: 4e-2}
"""The same between a packed example and the example alone, where kernels add in another order."""


def packing_problem(config: Any, model_class: type | None = None) -> str | None:
    """Return why a model cannot be trained on packed rows as far as its class and config tell, or None."""
    text = config.get_text_config()
    name = model_class.__name__ if model_class is not None else str(config.model_type)
    if getattr(model_class, "_is_stateful", False):
        return _refusal(f"{name} carries a state from token to token, also from one example into the next")
    if getattr(text, "attention_chunk_size", None):
        return _refusal(f"{name} divides a row into chunks of attention, which would cut examples apart")
    if getattr(text, "output_router_logits", False):
        return _refusal(
            f"the load-balancing loss of {name} (output_router_logits) would count the padding of packed rows"
        )
    return None


def is_packed(inputs: Mapping[str, Any]) -> bool:
    """Return whether the inputs of a model have several examples in a row, kept apart by their positions alone."""
    position_ids = inputs.get("position_ids")
    if not isinstance(position_ids, Tensor) or inputs.get("attention_mask") is not None:
        return False
    return bool((position_ids.diff(dim=-1) != 1).any())


def check_packed_attention(model: nn.Module, rows: int = 2, *, forward: nn.Module | None = None) -> None:
    """Refuse a model whose outputs for one example depend on the other examples of a packed row.

    Args:
        model: Causal language model, with or without an adapter, on its device.
        rows: Rows of a batch in training. Flash attention packs batches of one row only.
        forward: The model as it is wrapped for several devices; default ``model``.

    Raises:
        BALoraError: The model mixes packed examples, or its outputs differ from those of the example alone.
    """
    base = base_model_of(model)
    name = type(base).__name__
    problem = packing_problem(base.config, type(base))
    if problem is not None:
        raise BALoraError(problem)
    run = model if forward is None else forward
    generator = torch.Generator().manual_seed(0)
    vocabulary = int(base.get_input_embeddings().weight.shape[0])
    draws = torch.randint(0, vocabulary, (2 * _FIRST + _SECOND,), generator=generator)
    first, other, second = draws.split([_FIRST, _FIRST, _SECOND])
    other = torch.where(other == first, (other + 1) % vocabulary, other)
    alone_TV = _logits(run, [second], rows)
    packed_TV = _logits(run, [first, second], rows)
    changed_TV = _logits(run, [other, second], rows)
    size = 4 if alone_TV.dtype.itemsize >= 4 and base.dtype.itemsize >= 4 else 2
    scale = alone_TV.float().abs().max().clamp_min(1e-6)
    leak = (packed_TV - changed_TV).float().abs().max() / scale
    if not leak <= _LEAK[size]:
        raise BALoraError(
            _refusal(
                f"the tokens of one packed example change the outputs of the next one in {name} (attention "
                f"{base.config._attn_implementation}; by {float(leak):.1e} of the largest logit)"
            )
        )
    difference = (packed_TV - alone_TV).float().abs().max() / scale
    if not difference <= _ROUNDING[size]:
        raise BALoraError(
            _refusal(
                f"{name} gives a packed example other outputs than the example alone (by {float(difference):.1e} of the largest "
                "logit), so its positions do not begin anew"
            )
        )


def _logits(model: Any, examples: list[Tensor], rows: int) -> Tensor:
    """Return the logits at the last example of a packed row, T × V."""
    base = base_model_of(getattr(model, "module", model))
    device = next(base.parameters()).device
    input_ids = torch.cat(examples).expand(rows, -1).to(device)
    position_ids = torch.cat([torch.arange(len(example)) for example in examples]).expand(rows, -1).to(device)
    with evaluating(model):
        logits_BTV: Tensor = model(input_ids=input_ids, position_ids=position_ids, use_cache=False).logits
    return logits_BTV[-1, -len(examples[-1]) :]


def _refusal(reason: str) -> str:
    return f"data.packing cannot be used: {reason}. Leave it out."
