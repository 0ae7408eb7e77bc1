"""The text part of models that also read images or sound. Training is on text, which the other parts never see."""

import logging
from typing import Any

from torch import nn
from transformers.models.auto import modeling_auto

from balora.models.classifier_head import HEAD_NAMES

logger = logging.getLogger("balora")
IMAGE_TEXT_CLASSES = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
"""Classes of models that read images and write text, by model type."""
MULTIMODAL_CLASSES = {**getattr(modeling_auto, "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES", {}), **IMAGE_TEXT_CLASSES}
"""The same, with models that read sound."""


def is_multimodal(model: nn.Module) -> bool:
    """Return whether a model has a config of its own for its text part, as models for images and text have."""
    config: Any = getattr(model, "config", None)
    return hasattr(config, "get_text_config") and config.get_text_config() is not config


def parts_beside_text(model: nn.Module) -> list[str]:
    """Return the modules of a multimodal decoder that do not belong to its text part (vision tower, projector), by name.

    Heads belong to the text part. The list is empty for all other models.
    """
    if not is_multimodal(model) or model.config.is_encoder_decoder or not hasattr(model, "get_decoder"):  # type: ignore[union-attr]
        return []
    decoder = model.get_decoder()  # type: ignore[operator]
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    path = next((name for name, module in model.named_modules() if module is decoder), "").split(".")
    found, parent = [], model
    for depth, step in enumerate(path):
        for name, child in parent.named_children():
            is_head = child is output or (depth == 0 and name in HEAD_NAMES)
            if name != step and not is_head and any(True for _ in child.parameters()):
                found.append(".".join([*path[:depth], name]))
        parent = getattr(parent, step) if step else parent
    return found if path != [""] else []


def say_left_alone(parts: list[str]) -> None:
    """Tell the user which parts of a multimodal model are not trained."""
    if parts:
        logger.warning("Training is on text, so %s stay as they are.", " and ".join(parts))
