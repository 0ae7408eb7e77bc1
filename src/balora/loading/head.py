"""Classes of the classification head that a pre-trained model already has."""

from balora.errors import BALoraError
from balora.loading.pretrained import load_config
from balora.loading.source import ModelSource


def head_classes(source: ModelSource) -> tuple[str, ...] | None:
    """Return the names of the classes of a model's own head, in the order of its rows.

    Returns:
        None if the task is not classification, if the model has no head for classes, or if its config cannot be read, which
        `load_model` reports.
    """
    if source.task != "classification":
        return None
    try:
        config = load_config(source)
    except BALoraError:
        return None
    if not any(name.endswith("ForSequenceClassification") for name in config.architectures or ()):
        return None
    names = config.id2label or {}
    return tuple(str(names[number]) for number in sorted(names)) if len(names) > 1 else None
