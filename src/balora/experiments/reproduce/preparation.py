"""Data that experiments prepare before their runs: STS-B in three classes, and the rows of the quickstart's task."""

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from balora.checkpoints.provenance import file_digest
from balora.data.files.readers import read_table
from balora.data.files.tables import Row
from balora.errors import BALoraError
from balora.experiments.quickstart.task import test_rows, train_rows
from balora.experiments.reproduce.experiment import Paths, Preparation
from balora.files import write_text

SIMILARITY_CLASSES = {"low": (0.0, 1.5), "middle": (2.0, 3.25), "high": (4.0, 5.0)}
"""Lowest and highest rating of each class of STS-B, ends included."""
MOST_WORDS = 24
"""Most words of a pair's two sentences together."""
PAIRS_PER_CLASS = {"dev": 190, "train": 1075}
SAMPLE_SEED = 42
"""Seed of the sample of pairs, and of the quickstart's rows."""


def similarity_class(score: float) -> str | None:
    """Return the class of a rating; None for a rating between two classes.

    Example:
        >>> similarity_class(1.5), similarity_class(1.75), similarity_class(2.0), similarity_class(5.0)
        ('low', None, 'middle', 'high')
    """
    return next((name for name, (low, high) in SIMILARITY_CLASSES.items() if low <= score <= high), None)


def sample_pairs(rows: Sequence[Row], per_class: int, seed: int = SAMPLE_SEED) -> list[Row]:
    """Sample ``per_class`` short pairs of each similarity class, in their original order.

    Ratings between two classes are left out, because a rating is a mean over a few people and can move by that much. Long pairs
    are left out because they take time.

    Raises:
        BALoraError: A class has fewer short pairs.
    """
    rng = random.Random(seed)
    is_short = [len(f"{row['sentence1']} {row['sentence2']}".split()) <= MOST_WORDS for row in rows]
    classes = [
        similarity_class(float(row["score"])) if short else None for row, short in zip(rows, is_short, strict=True)
    ]
    chosen: list[int] = []
    for name in SIMILARITY_CLASSES:
        own = [n for n, found in enumerate(classes) if found == name]
        if len(own) < per_class:
            raise BALoraError(f"STS-B has {len(own)} short pairs of {name} similarity, but {per_class} are needed.")
        chosen += rng.sample(own, per_class)
    columns = ("sentence1", "sentence2", "score")
    return [{**{key: rows[n][key] for key in columns}, "label": classes[n]} for n in sorted(chosen)]


def _write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _sts_b(paths: Paths, split: str) -> str:
    return paths.data(f"glue/STS-B/{split}.tsv")


def _make_similarity(paths: Paths) -> dict[str, Any]:
    """Write evaluation pairs, and training pairs that are not among them."""
    facts: dict[str, Any] = {
        "seed": SAMPLE_SEED,
        "classes": {name: list(ends) for name, ends in SIMILARITY_CLASSES.items()},
        "most_words": MOST_WORDS,
    }
    evaluated: set[tuple[str, str]] = set()
    for split, per_class in PAIRS_PER_CLASS.items():  # dev first, so that training can leave its pairs out
        source = Path(_sts_b(paths, split))
        table = [row for row in read_table(source).rows if (row["sentence1"], row["sentence2"]) not in evaluated]
        rows = sample_pairs(table, per_class)
        if split == "dev":
            evaluated = {(row["sentence1"], row["sentence2"]) for row in rows}
        _write_rows(paths.prepared / f"{split}.jsonl", rows)
        facts[split] = {"source": source.name, "source_digest": file_digest(source), "per_class": per_class}
    return facts


def _make_quickstart_rows(paths: Paths) -> dict[str, Any]:
    rows = {"train": train_rows(SAMPLE_SEED), "test": test_rows(SAMPLE_SEED)}
    for name, found in rows.items():
        _write_rows(paths.prepared / f"{name}.jsonl", found)
    return {name: len(found) for name, found in rows.items()}


SIMILARITY = Preparation(
    title="STS-B cut into three classes of similarity",
    needs=lambda paths: [_sts_b(paths, split) for split in PAIRS_PER_CLASS],
    make=_make_similarity,
    seconds=1.0,
)
"""Data of figure 3, in place of MNLI, which cannot be fetched offline."""
QUICKSTART_ROWS = Preparation(
    title="Questions and answers of the quickstart's task",
    needs=lambda paths: (),
    make=_make_quickstart_rows,
    seconds=1.0,
)
