"""A foreign config in balora's keys, and helpers of those who read one."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Literal

Tool = Literal["TRL", "axolotl", "LLaMA-Factory"]


@dataclasses.dataclass
class Translation:
    """A foreign config in balora's keys."""

    tool: Tool
    values: dict[str, Any]
    remarks: list[str] = dataclasses.field(default_factory=list)
    """Sentences about keys whose meaning differs."""
    left_out: list[str] = dataclasses.field(default_factory=list)
    """Keys without a counterpart, as ``key: value``."""
    text: str | None = None
    """Column of plain text, if the data turn out to have no conversations."""
    probabilities: list[float] | None = None
    """Probabilities of the sources, which become weights when the rows are counted."""


def take(given: dict[str, Any], *names: str) -> Any:
    """Remove keys that mean the same, and return the value of the first one that is given."""
    found = [given.pop(name) for name in names if name in given]
    return found[0] if found else None


def set_given(section: dict[str, Any], key: str, value: Any) -> None:
    """Set a key, unless there is no value."""
    if value is not None:
        section[key] = value


def brief(value: Any) -> str:
    """Return a value as short JSON text, for a message."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
