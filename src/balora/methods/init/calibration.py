"""Statistics of calibration data: the input covariance and the gradient of each adapted weight.

Rows run one by one, so that no padding is counted. Shapes: O output features, I input features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging

from balora.errors import BALoraError
from balora.methods.layers.peft_lora import lora_layers
from balora.methods.layers.weight_views import WeightMatrix, weight_matrices
from balora.methods.method import AdaptOptions, Batches
from balora.models.adapted_model import evaluating


def calibration_rows(options: AdaptOptions, count: int) -> Batches:
    """Return ``count`` batches of one row each.

    Raises:
        BALoraError: There is no calibration data, or too little.
    """
    if options.calibration is None:
        raise BALoraError(
            "This method computes its initial values from data: pass calibration=, a function that returns batches of one row each."
        )
    rows = options.calibration(count)
    check_num_rows(count, len(rows))
    return [_without_padding(row) for row in rows]


def num_calibration_rows(extra: Mapping[str, Any]) -> int:
    """Return the number of rows that a method needs, given its options."""
    return int(extra["samples"]) * int(extra.get("candidates", 1))


def check_num_rows(needed: int, available: int) -> None:
    """Refuse too little calibration data.

    Raises:
        BALoraError: There are fewer rows than needed.
    """
    if available < needed:
        raise BALoraError(
            f"This method computes its initial values from {needed} rows of training data, and there are {available}. Set "
            "method.samples lower."
        )


def _without_padding(row: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the masked positions from a batch of one row. A batch of several rows stays as it is."""
    mask = row.get("attention_mask")
    if mask is None or mask.dim() != 2 or len(mask) != 1 or bool(mask.all()):
        return row
    positions = mask[0].bool()
    return {name: value[:, positions] if value.shape[:2] == mask.shape else value for name, value in row.items()}


@torch.no_grad()
def input_covariances(model: nn.Module, rows: Batches) -> dict[str, Tensor]:
    r"""Return the uncentred covariance of every adapted layer's inputs over all tokens, :math:`C = \sum_x x x^\top / n`.

    Args:
        model: Adapted model that still computes the pre-trained function.
        rows: Batches of one row each, without padding.

    Returns:
        C by layer name, I × I in float32.

    Raises:
        BALoraError: A layer has no input, or an input that is not finite.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def accumulate(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).float()
            sums[name] = sums[name] + x.T @ x if name in sums else x.T @ x
            counts[name] = counts.get(name, 0) + len(x)

        return hook

    layers = list(lora_layers(model))
    handles = [layer.register_forward_pre_hook(accumulate(name)) for name, layer in layers]  # type: ignore[attr-defined]
    try:
        with evaluating(model):
            for row in logging.tqdm(rows, desc="inputs of each layer", disable=None, leave=False):
                model(**_to_device(model, row))
    finally:
        for handle in handles:
            handle.remove()
    for name, _ in layers:
        if name not in sums or not bool(sums[name].isfinite().all()):
            raise BALoraError(f"{name} met no finite input in the calibration rows. Leave it out of target_modules.")
    return {name: sums[name] / counts[name] for name, _ in layers}


def weight_gradients(model: nn.Module, rows: Batches) -> list[tuple[WeightMatrix, Tensor]]:
    """Return the gradient of the mean task loss with respect to every adapted weight matrix.

    Args:
        model: Adapted model that still computes the pre-trained function.
        rows: Batches of one row each, with ``labels``.

    Returns:
        (matrix, gradient O × I in float32), in the model's order.

    Raises:
        BALoraError: A gradient is zero or not finite.
    """
    flags = {p: p.requires_grad for p in model.parameters()}
    weights = [_frozen_parameter(layer) for _, layer in lora_layers(model)]
    try:
        model.requires_grad_(False)
        for weight in weights:
            weight.requires_grad_(True)
        with evaluating(model), torch.enable_grad():
            for row in logging.tqdm(rows, desc="gradient of each weight", disable=None, leave=False):
                (model(**_to_device(model, row)).loss / len(rows)).backward()
        gradients = []
        for matrix in weight_matrices(model):
            gradient = _frozen_parameter(matrix.layer).grad
            if gradient is None or not bool(gradient.isfinite().all()) or not bool(gradient.any()):
                raise BALoraError(
                    f"The gradient of {matrix.name} on the calibration rows is zero or not finite. Leave it out of "
                    "target_modules, or set method.samples higher."
                )
            gradients.append((matrix, matrix.oriented(gradient).float().clone()))
        return gradients
    finally:
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
            parameter.grad = None


def _frozen_parameter(layer: Any) -> nn.Parameter:
    parameter: nn.Parameter = layer.get_param() if hasattr(layer, "get_param") else layer.get_base_layer().weight
    return parameter


def _to_device(model: nn.Module, row: dict[str, Tensor]) -> dict[str, Tensor]:
    device = next(model.parameters()).device
    return {name: value.to(device) for name, value in row.items()}
