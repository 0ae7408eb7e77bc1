"""Match the classes of the data with those of a classification head that the model already has."""

import re
import unicodedata
from collections.abc import Callable, Sequence

from balora.data.classes.labels import LabelSet, label_key

_SHOWN = 10
_UNNAMED = re.compile(r"label_\d+", re.IGNORECASE)
_SEPARATORS = re.compile(r"[\s_-]+")
_ALIASES = {
    alias: name
    for name, aliases in {
        "entailment": "entail entails entailed",
        "contradiction": "contradict contradicts contradicted contradictory",
        "neutral": "neu",
        "positive": "pos",
        "negative": "neg",
        "not_entailment": "notentailment nonentailment",
        "supports": "support supported",
        "refutes": "refute refuted",
    }.items()
    for alias in aliases.split()
}


def match_head(labels: LabelSet, head: Sequence[str], *, chosen: bool = False) -> tuple[LabelSet, str | None]:
    """Put the classes of the data in the order of the head's classes. Return them, and a sentence for the user.

    Classes are matched by name: exactly, without regard to case and separators, then by known aliases. The classes without a
    match take the rows of the head that are left, in their order.

    Args:
        labels: Classes of the data.
        head: Names of the head's classes, in the order of its rows.
        chosen: True if the user or the source of the data decided the order of the classes.

    Returns:
        The classes in the order of the head, with the data's names; and what to tell the user, None if the head has the same
        names in the same order.

    Example:
        >>> match_head(LabelSet(("neg", "pos")), ["POSITIVE", "NEGATIVE"])[0].names
        ('pos', 'neg')
    """
    names = labels.names
    if len(head) != len(names):
        return labels, (
            f"The model has a head for {len(head)} classes ({_listed(head)}), and the data have {len(names)} ({_listed(names)}): "
            "the head is replaced by a new, untrained one."
        )
    if tuple(head) == names:
        return labels, None
    matched = match_names(names, head)
    numbers = all(label_key(name).lstrip("-").isdecimal() for name in names)
    if not matched and all(_UNNAMED.fullmatch(name) for name in head):
        if chosen or names == tuple(map(str, range(len(names)))):
            return labels, None
        return labels, (
            "The head of the model does not name its classes, so its rows are taken for the classes of the data in sorted order: "
            f"{_pairs(names, head)}. If the head was trained in another order, list the classes in that order in data.labels."
        )
    left = iter([name for name in names if name not in matched.values()])
    ordered = tuple(matched[row] if row in matched else next(left) for row in range(len(head)))
    pairs = _pairs(ordered, head)
    if len(matched) == len(names):
        note = f"The classes of the data are matched by name with those of the model's head, in its order: {pairs}."
    elif numbers and not matched:
        note = (
            f"The numbers in the data are taken for the classes of the model's head, in its order: {pairs}. If they mean other "
            "classes, list the names of the classes in data.labels, in the order of the numbers."
        )
    else:
        unmatched = [name for name in names if name not in matched.values()]
        note = (
            f"The model's head has no class named {_listed(unmatched)}, so its rows are trained for the classes of the data as "
            f"follows: {pairs}. If these should be the same classes under other names, write the names of the head in the data."
        )
    return LabelSet(ordered, labels.indexed or names), note


def match_names(names: Sequence[str], head: Sequence[str]) -> dict[int, str]:
    """Return the name that each row of the head is matched with. A name that could belong to several rows has no match.

    Example:
        >>> match_names(["neg", "pos"], ["Positive", "neutral"])
        {0: 'pos'}
    """
    matched: dict[int, str] = {}
    forms: tuple[Callable[[str], str], ...] = (str, _plain, _canonical)
    for form in forms:
        names_left = [form(name) for name in names if name not in matched.values()]
        rows_left = [row for row in range(len(head)) if row not in matched]
        heads_left = [form(head[row]) for row in rows_left]
        own = {form(name): name for name in names if name not in matched.values()}
        for row, key in zip(rows_left, heads_left, strict=True):
            if names_left.count(key) == 1 and heads_left.count(key) == 1:
                matched[row] = own[key]
    return matched


def _plain(name: str) -> str:
    """Remove differences of case and of separators."""
    return _SEPARATORS.sub("_", unicodedata.normalize("NFC", name).strip().casefold()).strip("_")


def _canonical(name: str) -> str:
    """Replace a known alias by the name it stands for.

    Example:
        >>> _canonical("Non-entailed"), _canonical("POS")
        ('not_entailment', 'positive')
    """
    plain = _plain(name)
    negated = plain.startswith(("not_", "non_"))
    rest = plain[4:] if negated else plain
    return ("not_" if negated else "") + _ALIASES.get(rest, rest)


def _pairs(names: Sequence[str], head: Sequence[str]) -> str:
    return _listed([f"{name} = {own}" for name, own in zip(names, head, strict=True)])


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
