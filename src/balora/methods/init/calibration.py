"""Statistics of calibration data: the input covariance and the gradient of each adapted weight.

Rows run one by one, so that no padding is counted. Shapes: O output features, I input features.
"""

import functools
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from balora.errors import BALoraError
from balora.methods.initial_state import NOTICES
from balora.methods.layers.peft_lora import lora_layers
from balora.methods.layers.weight_views import WeightMatrix, frozen_parameter, weight_matrices
from balora.methods.method import AdaptOptions, Batches
from balora.models.adapted_model import evaluating

logger = logging.getLogger("balora")


def calibration_rows(options: AdaptOptions, model: nn.Module) -> Batches:
    """Return the batches, of one row each, that the method computes its initial values from.

    With less data than the method's options ask for, all of it is used, and a notice of ``model`` says so.

    Raises:
        BALoraError: There is no calibration data.
    """
    if options.calibration is None:
        raise BALoraError(
            "This method computes its initial values from data: pass calibration=, a function that returns batches of one row each."
        )
    wanted = num_calibration_rows(options.extra)
    rows = [_without_padding(row) for row in options.calibration(wanted)][:wanted]
    if not rows:
        raise BALoraError("The method computes its initial values from training rows, and calibration= returned none.")
    if (notice := describe_fewer_rows(options.extra, len(rows))) is not None:
        logger.warning(notice)
        setattr(model, NOTICES, [*getattr(model, NOTICES, ()), notice])
    return rows


def num_calibration_rows(extra: Mapping[str, Any]) -> int:
    """Return the number of rows that a method needs, given its options."""
    return int(extra["samples"]) * int(extra.get("candidates", 1))


def sample_size(extra: Mapping[str, Any], available: int) -> int:
    """Return the rows in each of a method's calibration samples: ``samples``, or an equal share of too few rows, at least 1.

    Example:
        >>> sample_size({"samples": 32, "candidates": 8}, 73), sample_size({"samples": 32, "candidates": 8}, 300)
        (9, 32)
    """
    return max(1, min(int(extra["samples"]), available // int(extra.get("candidates", 1))))


def describe_fewer_rows(extra: Mapping[str, Any], available: int) -> str | None:
    """Say that a method's initial values come from fewer rows than its options ask for; None if there are enough."""
    wanted = num_calibration_rows(extra)
    if available >= wanted:
        return None
    candidates, size = int(extra.get("candidates", 1)), sample_size(extra, available)
    used = f"all {available} are used"
    if candidates > 1:
        used = f"{min(candidates, available)} samples of {size} row{'' if size == 1 else 's'} are used"
    return f"The initial values are to be computed from {wanted} training rows (method.samples), and there are {available}: {used}."


def _without_padding(row: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the masked positions from a batch of one row; a batch of several rows is unchanged."""
    mask = row.get("attention_mask")
    if mask is None or mask.dim() != 2 or len(mask) != 1 or bool(mask.all()):
        return row
    positions = mask[0].bool()
    return {name: value[:, positions] if value.shape[:2] == mask.shape else value for name, value in row.items()}


@torch.no_grad()
def input_covariances(model: nn.Module, rows: Batches) -> dict[str, Tensor]:
    r"""Return the uncentred covariance of every layer's inputs over all tokens, :math:`C = \sum_x x x^\top / n`.

    ``model`` has new adapters, and ``rows`` are batches without padding. C is I × I in float32, by layer name.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def accumulate(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).float()
        sums[name] = sums[name] + x.T @ x if name in sums else x.T @ x
        counts[name] = counts.get(name, 0) + len(x)

    layers: list[tuple[str, Any]] = list(lora_layers(model))
    handles = [layer.register_forward_pre_hook(functools.partial(accumulate, name)) for name, layer in layers]
    try:
        with evaluating(model):
            for row in transformers_logging.tqdm(rows, desc="inputs of each layer", disable=None, leave=False):
                model(**_to_device(model, row))
    finally:
        for handle in handles:
            handle.remove()
    for name, _ in layers:
        if name not in sums or not bool(sums[name].isfinite().all()):
            raise BALoraError(f"{name} got no finite input from the calibration rows. Leave it out of target_modules.")
    return {name: sums[name] / counts[name] for name, _ in layers}


def weight_gradients(model: nn.Module, rows: Batches) -> list[tuple[WeightMatrix, Tensor]]:
    """Return every adapted weight matrix with the gradient of the mean task loss, O × I in float32.

    ``model`` has new adapters, and ``rows`` are batches with labels. A gradient that is zero or not finite is an error.
    """
    flags = {p: p.requires_grad for p in model.parameters()}
    weights = [frozen_parameter(layer) for _, layer in lora_layers(model)]
    try:
        model.requires_grad_(False)
        for weight in weights:
            weight.requires_grad_(True)
        with evaluating(model), torch.enable_grad():
            for row in transformers_logging.tqdm(rows, desc="gradient of each weight", disable=None, leave=False):
                (model(**_to_device(model, row)).loss / len(rows)).backward()
        gradients = []
        for matrix in weight_matrices(model):
            gradient = frozen_parameter(matrix.layer).grad
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


def _to_device(model: nn.Module, row: dict[str, Tensor]) -> dict[str, Tensor]:
    device = next(model.parameters()).device
    return {name: value.to(device) for name, value in row.items()}
