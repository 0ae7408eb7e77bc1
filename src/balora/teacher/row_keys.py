"""Keys of dataset rows, computed from their content and added to each batch.

A row number would identify a row in one run only. A key is valid for any order, split, seed and process, and changes if the
row changes.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

KEYS = "row_keys"
"""Name of the keys in a batch."""
KEY_BYTES = 16


def row_key(row: Mapping[str, Any]) -> bytes:
    """Return the key of one row: a 16-byte digest of the names and values of its columns.

    Lists and tensors give the same key, and so do integers of any width.

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
        if array.dtype.kind in "biuf":
            array = array.astype(np.float32 if array.dtype.kind == "f" else np.int64)
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
    """Collator that adds the keys of its rows to a batch if the batch contains these rows unchanged and in their order.

    If the wrapped collator sorts rows or replaces tokens, the batch gets no keys, because its rows are not those of the keys.
    """

    def __init__(self, collate: Callable[[Sequence[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, rows: Sequence[Any]) -> Any:
        """Return the batch, with ``row_keys`` in addition to its tensors."""
        keys = [row_key(row) for row in rows] if all(isinstance(row, Mapping) for row in rows) else None
        batch = self.collate(rows)
        if keys is not None and isinstance(batch, Mapping) and _contains_unchanged(batch, rows):
            batch = {**batch, KEYS: keys}
        return batch


def _contains_unchanged(batch: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether row i of the batch has the tokens of row i, with padding at one end or without padding."""
    input_ids = batch.get("input_ids")
    if not isinstance(input_ids, Tensor) or len(input_ids) != len(rows):
        return False
    for row, padded in zip(rows, input_ids.tolist(), strict=True):
        tokens = row.get("input_ids")
        tokens = tokens.tolist() if isinstance(tokens, Tensor | np.ndarray) else tokens
        if not tokens or list(tokens) not in (padded[: len(tokens)], padded[-len(tokens) :]):
            return False
    return True
