"""Rows of anchors: which of them a step takes, batches of them, and the file that keeps them.

A row is a mapping of the model's inputs to lists of numbers. ``labels`` are the tokens to predict, and -100 where student and
teacher are not compared; without labels a causal model is compared at every position.
Shapes: B rows, T positions.
"""

from __future__ import annotations

import functools
import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from balora.errors import BALoraError
from balora.files import apply_umask

FILE = "anchors.safetensors"
Row = Mapping[str, Sequence[int]]


class AnchorRows:
    """Anchors as rows of tokens, a part of them held out.

    Args:
        rows: The rows.
        held_out: Fraction of the rows that `train` lacks; at least one row.
        seed: Seed of the order and of what is held out.
        facts: Provenance, for the record: source, counts, settings.
        control: Number of rows that steer a budget; as many others are then held out. None without a budget.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        held_out: float,
        seed: int,
        facts: Mapping[str, Any] | None = None,
        control: int | None = None,
    ) -> None:
        if control is not None and len(rows) < 3:
            raise BALoraError(
                f"A budget needs at least 3 anchors, to train on, to steer and to measure, and there are {len(rows)}."
            )
        if len(rows) < 2:
            raise BALoraError(
                f"At least 2 anchors are needed, one to train on and one to measure, and there are {len(rows)}."
            )
        self.rows = [dict(row) for row in rows]
        self.facts = dict(facts or {})
        self.seed = seed
        order = random.Random(f"held out {seed}").sample(range(len(rows)), len(rows))
        if control is None:
            count = min(max(round(held_out * len(rows)), 1), len(rows) - 1)
            self.held_out, self.control, self.train = sorted(order[:count]), list[int](), sorted(order[count:])
        else:
            count = min(max(control, 1), (len(rows) - 1) // 2)
            # The control rows keep their random order: any run of them is a sample.
            self.held_out, self.control = sorted(order[:count]), order[count : 2 * count]
            self.train = sorted(order[2 * count :])

    def at(self, first: int, count: int) -> list[int]:
        """Return the numbers of ``count`` training rows from position ``first`` of an endless sequence of shuffled passes."""
        size = len(self.train)
        return [
            self.train[_order(self.seed, size, place // size)[place % size]] for place in range(first, first + count)
        ]

    def save(self, path: Path) -> None:
        """Write the rows to the side and rename the file."""
        columns = sorted({name for row in self.rows for name in row})
        tensors: dict[str, Tensor] = {}
        for name in columns:
            values = [list(row.get(name, ())) for row in self.rows]
            tensors[name] = torch.tensor([v for row in values for v in row], dtype=torch.int32)
            tensors[f"{name}.length"] = torch.tensor([len(row) for row in values], dtype=torch.int32)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        save_file(tensors, temporary, metadata={"facts": json.dumps(self.facts)})
        apply_umask(temporary)
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path, held_out: float, seed: int, *, budget: bool = False) -> AnchorRows:
        """Read what `save` wrote; raise `BALoraError` if the file is damaged or not of anchors.

        With ``budget``, as many rows steer it as the facts of the file say.
        """
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                facts = json.loads((file.metadata() or {})["facts"])
            names = [name for name in tensors if not name.endswith(".length")]
            split = {n: [t.tolist() for t in tensors[n].split(tensors[f"{n}.length"].tolist())] for n in names}
        except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise BALoraError(
                f"{path} is not a file of anchors, or it is damaged ({error}). Delete it and run again, or name another file."
            ) from error
        count = len(next(iter(split.values()), []))
        control = int(facts.get("control", 0)) if budget else None
        rows = [{n: split[n][i] for n in names if split[n][i]} for i in range(count)]
        return cls(rows, held_out, seed, facts, control)


@functools.lru_cache(maxsize=4)
def _order(seed: int, size: int, turn: int) -> list[int]:
    return random.Random(f"anchors {seed} {turn}").sample(range(size), size)


def rows_per_step(share: float, tokens_per_step: float, tokens_per_anchor: float, processes: int = 1) -> int:
    """Return the anchors of an optimizer step: ``share`` tokens for each token of the task, at least one for each process.

    Example:
        >>> rows_per_step(0.25, 1024.0, 128.0), rows_per_step(0.25, 8.0, 128.0), rows_per_step(0.25, 1024.0, 128.0, 4)
        (2, 1, 4)
    """
    return max(round(share * tokens_per_step / max(tokens_per_anchor, 1.0)), processes)


def rows_of_part(rows: Sequence[int], micro: int, micro_batches: int, process: int, processes: int) -> list[int]:
    """Return the rows of a step that one process takes in one micro-batch.

    All micro-batches of all processes have each row once. In a micro-batch either every process has rows or none has:
    a sharded model runs in all processes together.

    Args:
        rows: At least as many as there are processes.
        micro: Number of the micro-batch, from 0. Beyond ``micro_batches`` there are no rows.

    Example:
        >>> [rows_of_part([1, 2, 3], 0, 1, process, 2) for process in (0, 1)]
        [[1], [2, 3]]
    """
    used = min(len(rows) // processes, micro_batches)  # micro-batches that have rows, at equal distances
    number = micro * used // micro_batches
    if micro >= micro_batches or (micro + 1) * used // micro_batches == number:
        return []
    return split_evenly(rows, used * processes, number * processes + process)


def split_evenly(rows: Sequence[int], parts: int, part: int) -> list[int]:
    """Return one of ``parts`` consecutive parts whose sizes differ by at most one.

    Example:
        >>> [split_evenly([1, 2, 3, 4, 5], 3, part) for part in range(3)]
        [[1], [2, 3], [4, 5]]
    """
    return list(rows[len(rows) * part // parts : len(rows) * (part + 1) // parts])


def collate(rows: Sequence[Row], pad_token: int, *, causal: bool) -> dict[str, Tensor]:
    """Return a batch, padded on the right, with its attention mask; a causal row without labels gets its own tokens as such."""
    batch: dict[str, Tensor] = {}
    names = dict.fromkeys(name for row in rows for name in row if name != "attention_mask")
    fills = {"input_ids": pad_token, "labels": -100}
    for name in names:
        batch[name] = _padded([row[name] for row in rows], fills.get(name, 0))
    batch["attention_mask"] = _padded([row.get("attention_mask", [1] * len(row["input_ids"])) for row in rows], 0)
    if causal and "labels" not in batch:
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    return batch


def positions(row: Row, *, causal: bool) -> int:
    """Return the number of positions at which student and teacher are compared."""
    if "labels" not in row:
        return len(row["input_ids"]) - 1 if causal else 1
    labels = row["labels"][1:] if causal else row["labels"]
    return sum(label != -100 for label in labels)


def _padded(sequences: Sequence[Sequence[int]], fill: int) -> Tensor:
    width = max(len(values) for values in sequences)
    return torch.tensor([[*values, *[fill] * (width - len(values))] for values in sequences])


def vocabulary_digest(tokenizer: Any) -> str | None:
    """Return a digest of the numbers of a tokenizer's tokens, without those that were added to it; None if it lists no tokens."""
    size = getattr(tokenizer, "vocab_size", None)
    if size is None or not hasattr(tokenizer, "get_vocab"):
        return None
    vocabulary = sorted((number, token) for token, number in tokenizer.get_vocab().items() if number < size)
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()[:16]
