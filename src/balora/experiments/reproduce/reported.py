"""The paper's own numbers, to be shown beside ours and never as ours."""

from __future__ import annotations

import functools
import json
from importlib import resources
from typing import Any

from balora.experiments.compare.tables import markdown_table

_LOST = "not in our copy"
_ODDITIES = {
    "table1": (
        "The mean of BA-LoRA's row is 26.18; the paper prints 25.90. Its baselines are quoted from the CorDA++ paper, not rerun."
    ),
    "table2": "Its baselines are quoted from Kang & Yin 2025, not rerun.",
}


def reported_markdown(name: str) -> str:
    """A table of the paper in Markdown, under a line that says whose numbers these are.

    Args:
        name: Of the experiment, such as ``table2``.

    Raises:
        KeyError: There are no numbers of the paper under this name; see `is_reported`.

    Example:
        >>> reported_markdown("table10").splitlines()[0]
        "**The paper's numbers, not ours** (table 10, LLaMA-2-7B):"
    """
    table = _tables()[name]
    lines = [[row, *(_LOST if cell is None else str(cell) for cell in cells)] for row, cells in table["rows"].items()]
    parts = [f"**The paper's numbers, not ours** ({table['of']}):", markdown_table(["", *table["columns"]], lines)]
    return "\n\n".join([*parts, _ODDITIES[name]] if name in _ODDITIES else parts)


def is_reported(name: str) -> bool:
    """Whether there are numbers of the paper for an experiment."""
    return name in _tables()


@functools.cache
def _tables() -> dict[str, Any]:
    text = resources.files(__package__).joinpath("reported.json").read_text(encoding="utf-8")
    tables: dict[str, Any] = json.loads(text)
    return tables
