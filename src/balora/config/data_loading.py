"""Rules of ``data.packing``, which concern keys of other sections, too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def loading_problems(values: Mapping[str, Any], data: Mapping[str, Any]) -> list[str]:
    """List what does not fit together with packing, one sentence each.

    Args:
        values: The config as the user wrote it.
        data: Its ``data`` section.
    """
    training = values.get("training")
    return _packing_problems(data, training if isinstance(training, Mapping) else {})


def _packing_problems(data: Mapping[str, Any], training: Mapping[str, Any]) -> list[str]:
    packing, longest = data.get("packing"), data.get("max_length", 512)
    if not packing or packing == "off":
        return []
    problems = []
    is_number = isinstance(packing, int) and not isinstance(packing, bool)
    if is_number and isinstance(longest, int) and packing < longest:
        problems.append(
            f"data.packing {packing} is below data.max_length {longest}, so an example could be longer than a packed row. Raise "
            "data.packing, or lower data.max_length."
        )
    if training.get("neftune_noise_alpha"):
        problems.append(
            "training.neftune_noise_alpha scales its noise by the length of a row, so with data.packing it would be another "
            "noise. Leave one of them out."
        )
    return problems
