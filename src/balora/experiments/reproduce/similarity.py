"""STS-B's pairs as three classes, low, middle and high: figure 3's stand-in for MNLI, which is not at hand offline.

Pairs are rated 0 to 5. Those between two classes are left out, since a rating is a mean over a few people and moves by that much,
and so are long ones, for the time they take, and training pairs that are evaluated on too; what is left is cut to equal numbers,
drawn by a fixed seed.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from balora.checkpoints.provenance import file_digest
from balora.data.readers import Row, read_table
from balora.errors import BALoraError
from balora.experiments.reproduce.paths import Places
from balora.experiments.reproduce.prepare import Preparation
from balora.files import write_text

CLASSES = {"low": (0.0, 1.5), "middle": (2.0, 3.25), "high": (4.0, 5.0)}
"""Ratings of each class, ends included."""
MOST_WORDS = 24
"""Of both sentences together."""
PER_CLASS = {"dev": 190, "train": 1075}
SEED = 42


def class_of(score: float) -> str | None:
    """The class of a rating, None between two of them.

    Example:
        >>> class_of(1.5), class_of(1.75), class_of(2.0), class_of(5.0)
        ('low', None, 'middle', 'high')
    """
    return next((name for name, (low, high) in CLASSES.items() if low <= score <= high), None)


def cut(rows: list[Row], per_class: int, seed: int = SEED) -> list[Row]:
    """Short rows with a class, as many of each, in the order they came in.

    Args:
        rows: With ``sentence1``, ``sentence2`` and ``score``.
        per_class: Of each class.
        seed: Of the draw.

    Raises:
        BALoraError: A class has fewer.
    """
    rng = random.Random(seed)
    kept: list[int] = []
    for name in CLASSES:
        own = [number for number, row in enumerate(rows) if _is_short(row) and class_of(float(row["score"])) == name]
        if len(own) < per_class:
            raise BALoraError(
                f"There are {len(own)} short pairs of {name} similarity, fewer than the {per_class} asked for."
            )
        kept += rng.sample(own, per_class)
    columns = ("sentence1", "sentence2", "score")
    return [
        {**{key: rows[n][key] for key in columns}, "label": class_of(float(rows[n]["score"]))} for n in sorted(kept)
    ]


def _sentences(row: Row) -> tuple[str, str]:
    return row["sentence1"], row["sentence2"]


def _is_short(row: Row) -> bool:
    return len(f"{row['sentence1']} {row['sentence2']}".split()) <= MOST_WORDS


def prepared_file(places: Places, split: str) -> str:
    """Where the cut rows of ``train`` or ``dev`` lie."""
    return str(places.prepared / f"{split}.jsonl")


def make(places: Places) -> dict[str, Any]:
    """Write both files."""
    facts: dict[str, Any] = {"seed": SEED, "classes": {name: list(ends) for name, ends in CLASSES.items()}}
    facts["most_words"] = MOST_WORDS
    evaluated: set[tuple[str, str]] = set()
    for split, per_class in PER_CLASS.items():
        source = Path(_source(places, split))
        rows = cut([row for row in read_table(source).rows if _sentences(row) not in evaluated], per_class)
        evaluated |= {_sentences(row) for row in rows} if split == "dev" else set()
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_text(Path(prepared_file(places, split)), text)
        facts[split] = {"source": source.name, "source_digest": file_digest(source), "per_class": per_class}
    return facts


def _source(places: Places, split: str) -> str:
    return places.data(f"glue/STS-B/{split}.tsv")


THREE_CLASSES = Preparation(
    title="STS-B cut into three classes of similarity",
    needs=lambda places: [_source(places, split) for split in PER_CLASS],
    make=make,
    seconds=1.0,
)
