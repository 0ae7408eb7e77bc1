"""Data conditions: fewer rows, rarer classes, wrong labels, repeated rows. Training rows only, seeded, and counted.

They are applied in this order: ``subsample``, ``imbalance``, ``label_noise``, ``duplicate``. So classes are thinned among the rows
that were drawn, and a repeated row repeats its wrong label. Each has a random stream of its own: turning one on leaves the choices
of the ones before it as they were.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

from balora.config.sections import DataConfig
from balora.data.labels import LabelSet
from balora.data.readers import Row
from balora.errors import BALoraError, suggest

Facts = dict[str, Any]


def apply_conditions(
    rows: Sequence[Row], data: DataConfig, labels: LabelSet | None, seed: int
) -> tuple[list[Row], Facts | None]:
    """Bring the training rows into the condition a config asks for.

    Args:
        rows: Checked training examples; they are not changed.
        data: The config's ``data`` section.
        labels: The classes, for classification.
        seed: Of all choices.

    Returns:
        The rows in their order, repeated ones at the end, and what was done, in numbers; None when nothing was asked for.

    Raises:
        BALoraError: A condition names a class that is not there, or there are too few rows for it.
    """
    made = list(rows)
    facts: Facts = {"rows_given": len(rows)}
    if data.subsample is not None:
        made = _subsample(made, data.subsample, _stream(seed, "subsample"))
        facts["rows_drawn"] = len(made)
    if data.imbalance is not None:
        assert labels is not None
        made = _thin_out(made, data.imbalance, labels, _stream(seed, "imbalance"))
        facts["rows_after_imbalance"] = len(made)
    if data.label_noise:
        made, chosen, changed = _disturb(made, data, labels, _stream(seed, "label_noise"))
        facts |= {"labels_disturbed": chosen, "labels_changed": changed}
    if data.duplicate is not None:
        copies = _copies(made, data.duplicate, _stream(seed, "duplicate"))
        made += copies
        facts["rows_added"] = len(copies)
    if len(facts) == 1:
        return made, None
    facts["rows"] = len(made)
    if labels is not None:
        counts = Counter(_class_of(row, labels) for row in made)
        facts["classes"] = {name: counts[number] for number, name in enumerate(labels.names)}
    return made, facts


def describe(facts: Facts) -> str:
    """What was done to the rows, in one line.

    Example:
        >>> describe({"rows_given": 10, "labels_disturbed": 2, "labels_changed": 2, "rows": 10, "classes": {"no": 4, "yes": 6}})
        'Data conditions: 10 rows given, 2 labels disturbed (2 changed), 10 rows to learn from; no 4, yes 6'
    """
    words = [f"{facts['rows_given']:,} rows given"]
    words += [f"{facts['rows_drawn']:,} drawn"] if "rows_drawn" in facts else []
    words += [f"{facts['rows_after_imbalance']:,} after thinning classes"] if "rows_after_imbalance" in facts else []
    if "labels_disturbed" in facts:
        words.append(f"{facts['labels_disturbed']:,} labels disturbed ({facts['labels_changed']:,} changed)")
    words += [f"{facts['rows_added']:,} repetitions added"] if "rows_added" in facts else []
    words.append(f"{facts['rows']:,} rows to learn from")
    classes = ", ".join(f"{name} {count:,}" for name, count in facts.get("classes", {}).items())
    return "Data conditions: " + ", ".join(words) + (f"; {classes}" if classes else "")


def _stream(seed: int, name: str) -> random.Random:
    return random.Random(f"{seed} {name}")


def _subsample(rows: list[Row], size: float | int, rng: random.Random) -> list[Row]:
    wanted = size if isinstance(size, int) else max(1, round(size * len(rows)))
    if wanted > len(rows):
        raise BALoraError(f"data.subsample asks for {wanted:,} training rows, but there are {len(rows):,}.")
    return [rows[i] for i in sorted(rng.sample(range(len(rows)), wanted))]


def _thin_out(rows: list[Row], shares: dict[str, float], labels: LabelSet, rng: random.Random) -> list[Row]:
    """Keep a share of each named class, at least one row of it."""
    kept = set(range(len(rows)))
    for name, share in shares.items():
        number = labels.id_of(name)
        if number is None:
            raise BALoraError(
                f"data.imbalance names the class {name!r}, which is not among {', '.join(labels.names)}."
                f"{suggest(name, labels.names)}"
            )
        own = [i for i, row in enumerate(rows) if _class_of(row, labels) == number]
        if own:
            kept -= set(own) - set(rng.sample(own, max(1, round(share * len(own)))))
    return [rows[i] for i in sorted(kept)]


def _disturb(
    rows: list[Row], data: DataConfig, labels: LabelSet | None, rng: random.Random
) -> tuple[list[Row], int, int]:
    """Make a share of the labels wrong: another class at random, or the labels of the chosen rows passed around among them.

    Returns:
        The rows, how many were chosen, and how many labels differ from before (rows that are passed an equal one do not).
    """
    least = 1 if labels is not None else 2
    size = round(data.label_noise * len(rows))
    if size < least:
        raise BALoraError(
            f"data.label_noise {data.label_noise:g} of {len(rows):,} training rows is {size} row{'' if size == 1 else 's'}; "
            f"it takes at least {least}."
        )
    chosen = rng.sample(range(len(rows)), size)
    made = list(rows)
    if labels is not None:
        for i in chosen:
            others = [number for number in range(len(labels.names)) if number != _class_of(rows[i], labels)]
            made[i] = _with_class(rows[i], rng.choice(others), labels)
    else:  # each takes the next one's: a cycle through all chosen rows, so that none keeps its own
        for i, giver in zip(chosen, [*chosen[1:], chosen[0]], strict=True):
            made[i] = _with_label_of(rows[i], rows[giver])
    return made, size, sum(made[i] != rows[i] for i in chosen)


def _class_of(row: Row, labels: LabelSet) -> int:
    """The number of a row's class, also where the class has become the word to answer with."""
    number: int = row["labels"] if "labels" in row else labels.names.index(row["response"])
    return number


def _with_class(row: Row, number: int, labels: LabelSet) -> Row:
    """A row with another class, in the row's own form."""
    return {**row, "labels": number} if "labels" in row else {**row, "response": labels.names[number]}


def _with_label_of(row: Row, giver: Row) -> Row:
    """A row with another row's label: its score, its response, or the assistant's last turn."""
    for key in ("labels", "response"):
        if key in row:
            return {**row, key: giver[key]}
    messages = list(row["messages"])
    messages[_last_answer(messages)] = giver["messages"][_last_answer(giver["messages"])]
    return {**row, "messages": messages}


def _last_answer(messages: Sequence[Row]) -> int:
    return max(i for i, message in enumerate(messages) if message["role"] == "assistant")


def _copies(rows: list[Row], duplicate: dict[str, Any], rng: random.Random) -> list[Row]:
    size = round(duplicate["share"] * len(rows))
    if size < 1:
        raise BALoraError(
            f"data.duplicate {duplicate['share']:g} of {len(rows):,} training rows is no row; it takes at least 1."
        )
    chosen = sorted(rng.sample(range(len(rows)), size))
    return [rows[i] for _ in range(duplicate["times"] - 1) for i in chosen]
