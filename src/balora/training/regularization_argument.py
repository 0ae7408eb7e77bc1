"""The argument ``regularization`` of the trainers, in each of its forms."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from balora.config.validation import Problems, build_regularization
from balora.errors import BALoraError, raise_all, suggest
from balora.regularization import RegularizationConfig


def regularization_of(value: Any, task: str, objective: Mapping[str, Any] | None = None) -> RegularizationConfig:
    """Return the regularization that a value means: an object, ``on``, ``off``, or changes to the paper's values for the task.

    Args:
        value: `RegularizationConfig`, ``on`` or ``off`` (or true or false), a mapping of its fields, or None for the default.
        task: Task of the model.
        objective: Settings of the method's own objective, which then are the default.

    Raises:
        BALoraError: A field is unknown, or a value is not allowed.

    Example:
        >>> regularization_of("off", "generation") == RegularizationConfig.off()
        True
        >>> regularization_of({"consistency": 0.1}, "generation").diversity  # the paper's
        0.005
    """
    if value is None and objective:
        return RegularizationConfig.of_objective(objective)
    try:
        return build_regularization(value, task, True, objective)
    except Problems as error:
        raise_all(error.problems, "The argument regularization cannot be used")
        raise


def changed_regularization(config: RegularizationConfig, changes: Mapping[str, Any]) -> RegularizationConfig:
    """Return the regularization with some fields changed, as a search does.

    Raises:
        BALoraError: A field is unknown, or a value is not allowed.

    Example:
        >>> changed_regularization(RegularizationConfig(), {"consistency": 0.1}).consistency
        0.1
    """
    known = [field.name for field in dataclasses.fields(RegularizationConfig)]
    if wrong := [name for name in changes if name not in known]:
        raise BALoraError(
            f"The search space has regularization.{wrong[0]}, and there is no such field.{suggest(wrong[0], known)}"
        )
    return dataclasses.replace(config, **changes)
