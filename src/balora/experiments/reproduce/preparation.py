"""Preparations: data and models that an experiment makes once, before its runs at small scale, into a directory of its own."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from balora.checkpoints.lock import locked
from balora.checkpoints.provenance import file_digest
from balora.data.readers import Row, read_table
from balora.errors import BALoraError
from balora.experiments.quickstart.task import test_rows, train_rows
from balora.experiments.reproduce.paths import Paths
from balora.files import write_text

ABOUT = "about.json"
"""Name of the file with the preparation's facts. It is written last, so that it marks the directory as complete."""
SIMILARITY_CLASSES = {"low": (0.0, 1.5), "middle": (2.0, 3.25), "high": (4.0, 5.0)}
"""Lowest and highest rating of each class of STS-B, ends included."""
MOST_WORDS = 24
"""Most words of a pair's two sentences together."""
PAIRS_PER_CLASS = {"dev": 190, "train": 1075}
SAMPLE_SEED = 42
"""Seed of the sample of pairs, and of the quickstart's rows."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preparation:
    """A step before the runs of an experiment at small scale."""

    title: str
    """Name of the result, in a few words."""
    needs: Callable[[Paths], Sequence[str]]
    """Function that returns the files and directories that the step reads."""
    make: Callable[[Paths], dict[str, Any]]
    """Function that writes below ``paths.prepared`` and returns facts for ``about.json``. It is seeded."""
    seconds: float
    """Measured time on one core."""

    def missing(self, paths: Paths) -> list[str]:
        """List the files and directories that the step still has to read and that do not exist."""
        if self.is_made(paths):
            return []
        return [f"{name}: no such file or directory" for name in self.needs(paths) if not Path(name).exists()]

    def is_made(self, paths: Paths) -> bool:
        """Return True if the step is complete."""
        return (paths.prepared / ABOUT).is_file()

    def ensure(self, paths: Paths) -> None:
        """Carry out the step unless it is complete.

        Raises:
            BALoraError: A file to read is missing or unusable, or another process is preparing the same directory.
        """
        if self.is_made(paths):
            return
        if missing := self.missing(paths):
            raise BALoraError(f"These files are missing: {'; '.join(missing)}. The step {self.title!r} reads them.")
        with locked(paths.prepared, "Another process is preparing", "--output"):
            facts = self.make(paths)
            write_text(paths.prepared / ABOUT, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")


def similarity_class(score: float) -> str | None:
    """Return the class of a rating, None for ratings between two classes.

    Example:
        >>> similarity_class(1.5), similarity_class(1.75), similarity_class(2.0), similarity_class(5.0)
        ('low', None, 'middle', 'high')
    """
    return next((name for name, (low, high) in SIMILARITY_CLASSES.items() if low <= score <= high), None)


def sample_pairs(rows: Sequence[Row], per_class: int, seed: int = SAMPLE_SEED) -> list[Row]:
    """Sample equally many short pairs of each similarity class, in their original order.

    Ratings between two classes are left out, because a rating is a mean over a few people and can move by that much. Long pairs
    are left out because they take time.

    Args:
        rows: Pairs with ``sentence1``, ``sentence2`` and ``score``.
        per_class: Number of pairs of each class.
        seed: Seed of the sample.

    Raises:
        BALoraError: A class has fewer short pairs.
    """
    rng = random.Random(seed)
    chosen: list[int] = []
    for name in SIMILARITY_CLASSES:
        own = [n for n, row in enumerate(rows) if _is_short(row) and similarity_class(float(row["score"])) == name]
        if len(own) < per_class:
            raise BALoraError(f"STS-B has {len(own)} short pairs of {name} similarity, but {per_class} are needed.")
        chosen += rng.sample(own, per_class)
    columns = ("sentence1", "sentence2", "score")
    return [
        {**{key: rows[n][key] for key in columns}, "label": similarity_class(float(rows[n]["score"]))}
        for n in sorted(chosen)
    ]


def _is_short(row: Row) -> bool:
    return len(f"{row['sentence1']} {row['sentence2']}".split()) <= MOST_WORDS


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
