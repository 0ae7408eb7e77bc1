"""A data collator that says what is wrong if rows of different lengths are not padded."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from balora.errors import BALoraError

_PADDING = {
    "generation": "DataCollatorForSeq2Seq(tokenizer), which pads labels too",
    "seq2seq": "DataCollatorForSeq2Seq(tokenizer, model=model), which pads labels too",
}
_PADDING_OF_CLASSIFIERS = "DataCollatorWithPadding(tokenizer)"


class CheckedCollator:
    """Collator that raises `BALoraError` if the wrapped collator fails because the lists of its rows differ in length."""

    def __init__(self, collate: Callable[[Sequence[Any]], Any], task: str) -> None:
        self.collate = collate
        self.task = task

    def __call__(self, rows: Sequence[Any]) -> Any:
        """Return the batch of the wrapped collator."""
        try:
            return self.collate(rows)
        except (ValueError, TypeError, RuntimeError) as error:
            found = _ragged(rows)
            if found is None:
                raise
            column, lengths = found
            inner = getattr(self.collate, "collate", self.collate)  # of `KeyedCollator`
            name = getattr(inner, "__name__", type(inner).__name__)
            raise BALoraError(
                f"The rows of a batch have different lengths ({column}: {', '.join(map(str, lengths[:5]))}), and the data collator "
                f"({name}) does not pad {column}. Pass the trainer "
                f"data_collator={_PADDING.get(self.task, _PADDING_OF_CLASSIFIERS)}."
            ) from error


def _ragged(rows: Sequence[Any]) -> tuple[str, list[int]] | None:
    """Return a column whose lists differ in length, with the lengths; None if there is none. ``labels`` come first."""
    if not rows or not all(isinstance(row, Mapping) for row in rows):
        return None
    for column in sorted(rows[0], key=lambda name: (name != "labels", name != "input_ids")):
        values = [row.get(column) for row in rows]
        lengths = sorted({len(value) for value in values if isinstance(value, list | tuple | Tensor | np.ndarray)})
        if len(lengths) > 1:
            return column, lengths
    return None
