"""Perturbations of the training rows: fewer rows, rarer classes, wrong labels, repeated rows.

They are applied in the order ``subsample``, ``imbalance``, ``label_noise``, ``duplicate``: classes become rarer among the drawn
rows, and a repeated row repeats its wrong label. Each perturbation has its own random stream, so turning one on does not change
the earlier perturbations. Evaluation rows are never perturbed.
"""

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

from balora.config.sections import DataConfig
from balora.data.classes.labels import LabelSet
from balora.data.files.lazy_rows import Picked
from balora.data.files.tables import Row
from balora.errors import BALoraError, suggest

Facts = dict[str, Any]
"""Counts of what the perturbations did, as `run.json` keeps them."""


def apply_perturbations(
    rows: Sequence[Row], data: DataConfig, labels: LabelSet | None, seed: int
) -> tuple[Sequence[Row], Facts | None]:
    """Apply the perturbations of a ``data`` section to the training rows, which stay as they are.

    Returns:
        The rows in their order, with repeated rows at the end, and the counts of the changes; None if there are none.

    Raises:
        BALoraError: A perturbation names an unknown class, or there are too few rows for it.
    """
    if not any((data.subsample is not None, data.imbalance, data.label_noise, data.duplicate)):
        return rows, None
    changed = Picked(rows, range(len(rows)))
    facts: Facts = {"rows_given": len(rows)}
    if data.subsample is not None:
        changed = _subsample(changed, data.subsample, random.Random(f"{seed} subsample"))
        facts["rows_drawn"] = len(changed)
    if data.imbalance is not None:
        assert labels is not None
        changed = _make_rarer(changed, data.imbalance, labels, random.Random(f"{seed} imbalance"))
        facts["rows_after_imbalance"] = len(changed)
    if data.label_noise:
        changed, chosen, different = _add_label_noise(changed, data, labels, random.Random(f"{seed} label_noise"))
        facts |= {"labels_disturbed": chosen, "labels_changed": different}
    if data.duplicate is not None:
        copies = _copies(changed, data.duplicate, random.Random(f"{seed} duplicate"))
        changed = changed.pick([*range(len(changed)), *copies])
        facts["rows_added"] = len(copies)
    facts["rows"] = len(changed)
    if labels is not None:
        counts = Counter(_class_of(row, labels) for row in changed)
        facts["classes"] = {name: counts[number] for number, name in enumerate(labels.names)}
    return changed, facts


def describe_perturbations(facts: Facts) -> str:
    """Describe the changes to the rows in one line.

    Example:
        >>> facts = {"rows_given": 10, "labels_disturbed": 2, "labels_changed": 2, "rows": 10, "classes": {"no": 4, "yes": 6}}
        >>> describe_perturbations(facts)
        'Data perturbations: 10 rows given, 2 labels disturbed (2 changed), 10 rows to learn from; no 4, yes 6'
    """
    phrases = {
        "rows_given": "{rows_given:,} rows given",
        "rows_drawn": "{rows_drawn:,} drawn",
        "rows_after_imbalance": "{rows_after_imbalance:,} after making classes rarer",
        "labels_disturbed": "{labels_disturbed:,} labels disturbed ({labels_changed:,} changed)",
        "rows_added": "{rows_added:,} repetitions added",
        "rows": "{rows:,} rows to learn from",
    }
    counts = ", ".join(phrase.format(**facts) for key, phrase in phrases.items() if key in facts)
    classes = ", ".join(f"{name} {count:,}" for name, count in facts.get("classes", {}).items())
    return f"Data perturbations: {counts}" + (f"; {classes}" if classes else "")


def _subsample(rows: Picked, size: float | int, rng: random.Random) -> Picked:
    wanted = size if isinstance(size, int) else max(1, round(size * len(rows)))
    if wanted > len(rows):
        raise BALoraError(f"data.subsample asks for {wanted:,} training rows, but there are {len(rows):,}.")
    return rows.pick(sorted(rng.sample(range(len(rows)), wanted)))


def _make_rarer(rows: Picked, fractions: dict[str, float], labels: LabelSet, rng: random.Random) -> Picked:
    """Keep a fraction of the rows of each named class, at least one row per class."""
    remaining = set(range(len(rows)))
    classes = [_class_of(row, labels) for row in rows]
    for name, fraction in fractions.items():
        number = labels.id_of(name)
        if number is None:
            raise BALoraError(
                f"data.imbalance names the class {name!r}, which is not among {', '.join(labels.names)}."
                f"{suggest(name, labels.names)}"
            )
        own = [i for i, found in enumerate(classes) if found == number]
        if own:
            remaining -= set(own) - set(rng.sample(own, max(1, round(fraction * len(own)))))
    return rows.pick(sorted(remaining))


def _add_label_noise(
    rows: Picked, data: DataConfig, labels: LabelSet | None, rng: random.Random
) -> tuple[Picked, int, int]:
    """Make a fraction of the labels wrong. Return the rows, the number of chosen rows, and that of changed labels.

    A class becomes another class at random. Other labels are exchanged: each chosen row takes the label of the next one.
    The two labels can be equal.
    """
    least = 1 if labels is not None else 2
    size = round(data.label_noise * len(rows))
    if size < least:
        raise BALoraError(
            f"data.label_noise {data.label_noise:g} of {len(rows):,} training rows is {size} row{'' if size == 1 else 's'}, "
            f"but it needs at least {least}."
        )
    chosen = rng.sample(range(len(rows)), size)
    old = rows.read(chosen)
    if labels is not None:
        new = []
        for row in old:
            others = [number for number in range(len(labels.names)) if number != _class_of(row, labels)]
            new.append(_with_class(row, rng.choice(others), labels))
    else:  # one cycle through all chosen rows, so that none takes its own label
        new = [_with_label_of(row, giver) for row, giver in zip(old, [*old[1:], old[0]], strict=True)]
    different = sum(one != other for one, other in zip(old, new, strict=True))
    return rows.with_replaced(dict(zip(chosen, new, strict=True))), size, different


def _class_of(row: Row, labels: LabelSet) -> int:
    """Return the number of a row's class, also if the class is the response of a seq2seq row."""
    number: int = row["labels"] if "labels" in row else labels.names.index(row["response"])
    return number


def _with_class(row: Row, number: int, labels: LabelSet) -> Row:
    """Return a row with another class, in the same form."""
    return {**row, "labels": number} if "labels" in row else {**row, "response": labels.names[number]}


def _with_label_of(row: Row, giver: Row) -> Row:
    """Return a row with another row's score, response or last answer of the assistant."""
    for key in ("labels", "response"):
        if key in row:
            return {**row, key: giver[key]}
    messages = list(row["messages"])
    messages[_last_answer(messages)] = giver["messages"][_last_answer(giver["messages"])]
    return {**row, "messages": messages}


def _last_answer(messages: Sequence[Row]) -> int:
    return max(i for i, message in enumerate(messages) if message["role"] == "assistant")


def _copies(rows: Picked, duplicate: dict[str, Any], rng: random.Random) -> list[int]:
    """Return the numbers of the rows to add."""
    size = round(duplicate["share"] * len(rows))
    if size < 1:
        raise BALoraError(
            f"data.duplicate {duplicate['share']:g} of {len(rows):,} training rows is 0 rows, but it needs at least 1."
        )
    chosen = sorted(rng.sample(range(len(rows)), size))
    return [i for _ in range(duplicate["times"] - 1) for i in chosen]
