"""Packing (``data.packing``): several examples in one row, so that a batch has little padding.

A packed row has ``position_ids`` that begin at 0 in each of its examples. Without an attention mask, transformers reads the
borders of the examples off these positions and keeps attention within each example.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from datasets import Dataset

from balora.config.sections import DataConfig
from balora.data.collate import IGNORED
from balora.data.tokenize import Tokenized


def group_by_capacity(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Divide examples into rows: the longest example first, each into the row with the least room that still takes it.

    Args:
        lengths: Number of tokens of each example, at most ``capacity``.
        capacity: Maximum number of tokens of a row.

    Returns:
        For each row the numbers of its examples, ascending. The rows are in the order of their first examples.

    Example:
        >>> group_by_capacity([5, 3, 4, 2, 6], 8)
        [[0, 1], [2], [3, 4]]
    """
    groups: list[list[int]] = []
    by_room: dict[int, list[int]] = {}  # numbers of the rows with this much room
    rooms: list[int] = []  # keys of by_room, ascending
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        at = bisect_left(rooms, lengths[number])
        if at == len(rooms):
            group, room = len(groups), capacity
            groups.append([])
        else:
            room = rooms[at]
            group = by_room[room].pop()
            if not by_room[room]:
                del by_room[room], rooms[at]
        groups[group].append(number)
        room -= lengths[number]
        if room not in by_room:
            by_room[room] = []
            insort(rooms, room)
        by_room[room].append(group)
    return sorted(sorted(group) for group in groups)


def pack(rows: Dataset, capacity: int) -> Dataset:
    """Pack tokenized examples of a causal language model.

    Args:
        rows: Columns ``input_ids`` and ``labels`` of one length in each row, without padding.
        capacity: Maximum number of tokens of a packed row; at least that of the longest example.

    Returns:
        Rows with ``input_ids``, ``labels`` and ``position_ids``. The first token of each example is no target, because the
        token before it belongs to another example.

    Example:
        >>> rows = Dataset.from_dict({"input_ids": [[5, 6], [7, 8, 9]], "labels": [[5, 6], [7, 8, 9]]})
        >>> pack(rows, 8)[0]["position_ids"], pack(rows, 8)[0]["labels"]
        ([0, 1, 0, 1, 2], [-100, 6, -100, 8, 9])
    """
    table = rows.select_columns(["input_ids", "labels"]).with_format("arrow")[:]
    columns = {name: table.column(name).combine_chunks() for name in ("input_ids", "labels")}
    lengths = np.asarray(columns["input_ids"].value_lengths())
    groups = group_by_capacity(lengths.tolist(), capacity)
    order = np.concatenate([np.asarray(group) for group in groups])
    lengths_of = lengths[order]
    old_starts = (np.cumsum(lengths) - lengths)[order]
    new_starts = np.cumsum(lengths_of) - lengths_of
    position = np.arange(lengths.sum()) - np.repeat(new_starts, lengths_of)
    taken = np.repeat(old_starts, lengths_of) + position
    flat = {name: np.asarray(column.flatten())[taken].astype(np.int32) for name, column in columns.items()}
    flat["labels"][new_starts] = IGNORED
    flat["position_ids"] = position.astype(np.int32)
    sizes = [int(sum(lengths[group])) for group in groups]
    offsets = pa.array(np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32))
    packed = {name: pa.ListArray.from_arrays(offsets, pa.array(values)) for name, values in flat.items()}
    return Dataset(pa.table(packed))


def capacity_of(data: DataConfig) -> int:
    """Return the maximum number of tokens of a packed row: that of ``data.packing``, or else of ``data.max_length``."""
    return data.max_length if data.packing is True else int(data.packing)


def pack_training_rows(rows: Tokenized, data: DataConfig) -> Tokenized:
    """Pack the training rows of a run if ``data.packing`` is on. Evaluation rows stay single."""
    if not data.packing:
        return rows
    capacity = capacity_of(data)
    packed = pack(rows.train, capacity)
    tokens = len(packed.data.column("input_ids").combine_chunks().flatten())
    note = describe_packing(len(rows.train), tokens, len(packed), capacity)
    return dataclasses.replace(rows, train=packed, notes=(*rows.notes, note))


def describe_packing(examples: int, tokens: int, rows: int, capacity: int) -> str:
    """Say how many examples became how many rows, and how full these are."""
    return (
        f"Packed {examples:,} examples into {rows:,} rows of up to {capacity:,} tokens, which are "
        f"{tokens / (rows * capacity):.0%} full."
    )
