"""What a batch of data says about each weight: the inputs it meets, the gradient it gets. For starts that need data.

Rows are run one by one, so that no padding is counted. Shapes: O output features, I input features, E experts.
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
    """``count`` batches of one row each.

    Raises:
        BALoraError: No data was given, or too little.
    """
    if options.calibration is None:
        raise BALoraError(
            "This method starts from data: pass calibration=, a function that gives batches of one row each."
        )
    rows = options.calibration(count)
    check_enough(count, len(rows))
    return [_unpadded(row) for row in rows]


def num_calibration_rows(extra: Mapping[str, Any]) -> int:
    """How many rows a start from data takes, by its method's options."""
    return int(extra["samples"]) * int(extra.get("candidates", 1))


def check_enough(wanted: int, there: int) -> None:
    """Refuse too little data.

    Raises:
        BALoraError: There are fewer rows than the start wants.
    """
    if there < wanted:
        raise BALoraError(
            f"This method wants {wanted} rows of training data to start from, and there are {there}. Set method.samples lower."
        )


def _unpadded(row: dict[str, Tensor]) -> dict[str, Tensor]:
    """One row without the positions that its mask takes out; with more than one row in it, as it is."""
    mask = row.get("attention_mask")
    if mask is None or mask.dim() != 2 or len(mask) != 1 or bool(mask.all()):
        return row
    kept = mask[0].bool()
    return {name: value[:, kept] if value.shape[:2] == mask.shape else value for name, value in row.items()}


@torch.no_grad()
def input_covariances(model: nn.Module, rows: Batches) -> dict[str, Tensor]:
    r"""Of every adapted layer's inputs, :math:`C = \sum_x x x^\top / n`, uncentred, over all tokens of all rows.

    Args:
        model: Adapted; its function is still the pre-trained one's.
        rows: Batches of one row each, without padding.

    Returns:
        C by layer name, I × I in float32.

    Raises:
        BALoraError: A layer meets no finite input.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).float()
            sums[name] = sums[name] + x.T @ x if name in sums else x.T @ x
            counts[name] = counts.get(name, 0) + len(x)

        return hook

    layers = list(lora_layers(model))
    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers]  # type: ignore[attr-defined]
    try:
        with evaluating(model):
            for row in logging.tqdm(rows, desc="inputs of each layer", disable=None, leave=False):
                model(**_on(model, row))
    finally:
        for handle in handles:
            handle.remove()
    for name, _ in layers:
        if name not in sums or not bool(sums[name].isfinite().all()):
            raise BALoraError(f"{name} met no finite input in the calibration rows. Leave it out of target_modules.")
    return {name: sums[name] / counts[name] for name, _ in layers}


def weight_gradients(model: nn.Module, rows: Batches) -> list[tuple[WeightMatrix, Tensor]]:
    """The gradient of the mean task loss with respect to every adapted weight matrix.

    Args:
        model: Adapted; its function is still the pre-trained one's.
        rows: Batches of one row each, with ``labels``.

    Returns:
        (matrix, gradient O × I in float32), in the model's order.

    Raises:
        BALoraError: A gradient is zero or not finite.
    """
    learnt = {p: p.requires_grad for p in model.parameters()}
    weights = [_frozen_parameter(layer) for _, layer in lora_layers(model)]
    try:
        model.requires_grad_(False)
        for weight in weights:
            weight.requires_grad_(True)
        with evaluating(model), torch.enable_grad():
            for row in logging.tqdm(rows, desc="gradient of each weight", disable=None, leave=False):
                (model(**_on(model, row)).loss / len(rows)).backward()
        found = []
        for matrix in weight_matrices(model):
            gradient = _frozen_parameter(matrix.layer).grad
            if gradient is None or not bool(gradient.isfinite().all()) or not bool(gradient.any()):
                raise BALoraError(
                    f"The gradient of {matrix.name} on the calibration rows is zero or not finite. Leave it out of "
                    "target_modules, or set method.samples higher."
                )
            found.append((matrix, _as_matrix(matrix, gradient).float().clone()))
        return found
    finally:
        for parameter, flag in learnt.items():
            parameter.requires_grad_(flag)
            parameter.grad = None


def _as_matrix(matrix: WeightMatrix, stored: Tensor) -> Tensor:
    """A tensor laid out as the frozen weight, as (out, in) of one matrix."""
    layer: Any = matrix.layer
    if matrix.expert is not None:
        return stored[matrix.expert] if layer._did_swap_in_out_features else stored[matrix.expert].T
    return stored.T if layer.fan_in_fan_out else stored


def _frozen_parameter(layer: Any) -> nn.Parameter:
    parameter: nn.Parameter = layer.get_param() if hasattr(layer, "get_param") else layer.get_base_layer().weight
    return parameter


def _on(model: nn.Module, row: dict[str, Tensor]) -> dict[str, Tensor]:
    device = next(model.parameters()).device
    return {name: value.to(device) for name, value in row.items()}


__all__ = ["calibration_rows", "check_enough", "input_covariances", "num_calibration_rows", "weight_gradients"]
