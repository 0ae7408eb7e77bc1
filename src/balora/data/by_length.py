"""Rows in the order of their length, so that a batch holds little padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from torch.utils.data import Subset


def shortest_first(rows: Any) -> Any:
    """The same rows, the shortest first; rows of one length stay in their order.

    For what does not ask about order: a classifier's scores, the features under a head that is fitted.

    Args:
        rows: A dataset with a length, each row with ``input_ids``. Rows of another kind are given back as they are.
    """
    lengths = _lengths(rows)
    if lengths is None:
        return rows
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return rows.select(order) if isinstance(rows, Dataset) else Subset(rows, order)


def _lengths(rows: Any) -> Sequence[int] | None:
    if isinstance(rows, Dataset):
        return [len(ids) for ids in rows["input_ids"]] if "input_ids" in rows.column_names else None
    try:
        return [len(rows[number]["input_ids"]) for number in range(len(rows))]
    except (KeyError, TypeError):
        return None
