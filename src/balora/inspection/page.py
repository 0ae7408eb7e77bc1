"""An inspection as one HTML page that loads nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from balora.inspection.inspect import Inspection, Part, histogram, quantiles
from balora.plots.html import write_page


def write_inspection(found: Inspection, path: Path) -> Path:
    """Write the page of an inspection: counts, lengths, classes, and the examples with their tokens coloured."""
    values = {
        "found": found,
        "parts": [_part_values(part) for part in found.parts],
        "model": found.config.model,
        "examples": [*found.train.shown, *found.train.odd],
    }
    return write_page(path, "inspect.html.j2", package="balora.inspection", **values)


def _part_values(part: Part) -> dict[str, Any]:
    bins = histogram(part.lengths, 20) if part.lengths else []
    largest = max((count for _, _, count in bins), default=1)
    total = max(1, sum(part.labels.values()))
    most = max(part.labels.values(), default=1) or 1
    return {
        "part": part,
        "quantiles": quantiles(part.lengths) if part.lengths else {},
        "bins": [(low, high, count, 100 * count / largest, low > part.limit.tokens) for low, high, count in bins],
        "labels": [(name, count, count / total, 100 * count / most) for name, count in part.labels.most_common()],
    }
