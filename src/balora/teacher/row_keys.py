"""Which example is this? A key over its content, carried through the data pipeline beside the batch.

A number in the dataset would do for one run; a key over the content holds for any order, split, seed and process, and
tells when an example is no longer what it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

KEYS = "row_keys"
"""Where a batch holds the keys of its rows."""
KEY_BYTES = 16


def row_key(row: Mapping[str, Any]) -> bytes:
    """The key of one row: 16 bytes over the names and values of its columns.

    The same for lists and tensors, and for integers of any width.

    Example:
        >>> import torch
        >>> row_key({"input_ids": [1, 2]}) == row_key({"input_ids": torch.tensor([1, 2], dtype=torch.int32)})
        True
    """
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    for name in sorted(row):
        value = row[name]
        if value is None:
            continue
        array = _array(value)
        if array.dtype.kind in "biu":
            array = array.astype(np.int64)
        elif array.dtype.kind == "f":
            array = array.astype(np.float32)
        content = array.tobytes() if array.dtype.kind in "if" else repr(value).encode()
        digest.update(f"{name}{array.shape}".encode() + content)
    return digest.digest()


def _array(value: Any) -> np.ndarray:
    if isinstance(value, Tensor):
        return value.detach().cpu().numpy()
    try:
        return np.asarray(value)
    except ValueError:  # lists of lists of different lengths
        return np.asarray(repr(value))


class KeyedCollator:
    """A collator that adds the keys of the rows it was given, where the batch holds these rows as they are, in their order.

    One that sorts them, or puts other tokens in their place, makes batches without keys: what a teacher said of one row
    must not be taken for what it would say of another.
    """

    def __init__(self, collate: Callable[[Sequence[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, rows: Sequence[Any]) -> Any:
        """The batch, with ``row_keys`` beside its tensors."""
        keys = [row_key(row) for row in rows] if all(isinstance(row, Mapping) for row in rows) else None
        batch = self.collate(rows)
        if keys is not None and isinstance(batch, Mapping) and _holds(batch, rows):
            batch = {**batch, KEYS: keys}
        return batch


def _holds(batch: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether each row's tokens stand in the batch's row of the same number, padded at one end or not at all."""
    together = batch.get("input_ids")
    if not isinstance(together, Tensor) or len(together) != len(rows):
        return False
    for row, padded in zip(rows, together.tolist(), strict=True):
        tokens = row.get("input_ids")
        tokens = tokens.tolist() if isinstance(tokens, Tensor | np.ndarray) else tokens
        if not tokens or list(tokens) not in (padded[: len(tokens)], padded[-len(tokens) :]):
            return False
    return True
