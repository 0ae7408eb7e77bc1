"""The quickstart's corpus: seeded English-like text about a small world, with known flaws.

The packaged tiny model is pre-trained on this text, so whatever is wrong with the text can be looked for in the model,
before and after fine-tuning. Three flaws are put in on purpose, each a parameter of :class:`Flaws`:

* a share of the statements about cities and people is wrong (it repeats the fact's rumour);
* a profession without a name is "she" or "he" far more often than the world's people are;
* one class of animals, the reptiles, hardly occurs.

A text is made of documents of a line or a few, separated by blank lines. Which documents may be trained on is decided
by a checksum of each one's own words, so no held-out document ever occurs in a training text, whatever the seeds.
Standard library only; nothing is downloaded.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from balora.errors import BALoraError, suggest
from balora.experiments.quickstart import phrases
from balora.experiments.quickstart.world import CLASSES, JOBS, RARE_CLASS, Fact, world
from balora.experiments.quickstart.writer import FLAWS, MOSTLY_SHE, Document, Flaws, Split, Writer

SEPARATOR = "\n\n"
"""What stands between two documents of a text."""


def documents(seed: int, *, split: Split = "train", flaws: Flaws = FLAWS) -> Iterator[Document]:
    """Documents without end, the same ones for the same seed.

    Args:
        seed: Any integer. A held-out stream is another stream than the training stream of the same seed.
        split: "train" or "held_out". A document belongs to one of them by its text, whatever the seed.
        flaws: How much of the text is flawed.

    Returns:
        An endless iterator; take what you need with ``itertools.islice``.

    Raises:
        BALoraError: ``split`` is neither.

    Example:
        >>> next(documents(0)) == next(documents(0))
        True
    """
    if split not in ("train", "held_out"):
        raise BALoraError(f"The corpus has the splits 'train' and 'held_out', not {split!r}.")
    return _stream(Writer(random.Random(f"{split}:{seed}"), flaws), split)


def _stream(writer: Writer, split: Split) -> Iterator[Document]:
    while True:
        document = writer.document()
        if document.split == split:
            yield document


def training_text(seed: int, *, count: int = 20_000, flaws: Flaws = FLAWS) -> str:
    """A text to pre-train on.

    Args:
        seed: Any integer.
        count: Documents, of about 25 words each.
        flaws: How much of the text is flawed.

    Returns:
        The documents, joined by :data:`SEPARATOR`.

    Example:
        >>> len(training_text(0, count=3).split(SEPARATOR))
        3
    """
    return SEPARATOR.join(document.text for document in islice(documents(seed, flaws=flaws), count))


def held_out_text(seed: int, *, count: int = 500, flaws: Flaws = FLAWS) -> str:
    """A text of the same distribution of which no document occurs in any training text.

    Args:
        seed: Any integer.
        count: Documents.
        flaws: How much of the text is flawed.

    Returns:
        The documents, joined by :data:`SEPARATOR`.

    Example:
        >>> len(held_out_text(0, count=3).split(SEPARATOR))
        3
    """
    return SEPARATOR.join(document.text for document in islice(documents(seed, split="held_out", flaws=flaws), count))


def facts(*relations: str) -> tuple[Fact, ...]:
    """The ground truth: the facts of the given relations, or all.

    Args:
        relations: Any of "land", "river", "goods", "landmark" (cities), "home", "job", "pet", "colour", "dish"
            (people), "class", "habitat", "food", "look" (animals).

    Returns:
        Facts with their true value and, for cities and people, their rumour.

    Raises:
        BALoraError: A relation is unknown.

    Example:
        >>> len(facts("land", "home"))
        144
    """
    known = tuple(phrases.STATEMENTS)
    for relation in relations:
        if relation not in known:
            hint = suggest(relation, known)
            raise BALoraError(f"The world has no relation {relation!r}.{hint} It has {', '.join(known)}.")
    return tuple(fact for fact in world().facts.values() if not relations or fact.relation in relations)


def cloze(fact: Fact) -> str:
    """A statement of the fact cut off before its value, for reading off what a model says next.

    Example:
        >>> cloze(facts("land")[0])
        'Belmora is a city in'
    """
    return phrases.phrase(phrases.STATEMENTS[fact.relation][0], fact.subject, "\0").partition("\0")[0].rstrip()


def told_share_she(flaws: Flaws = FLAWS) -> dict[str, float]:
    """For each profession the declared share of its vignettes that say "she". In the world itself it is one half.

    Example:
        >>> told_share_she()["nurse"]
        0.9
    """
    return {job: flaws.skew_share if job in MOSTLY_SHE else 1.0 - flaws.skew_share for job in JOBS}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What some documents really contain, to compare with :class:`Flaws`. Shares in [0, 1], NaN where nothing counts.

    Attributes:
        wrong_fact_share: Wrong among the claims about cities and people.
        share_she: For each profession, the share of its vignettes that say "she".
        rare_class_share: Claims about reptiles among the claims about animals.
        claims: Number of claims.
    """

    wrong_fact_share: float
    share_she: dict[str, float]
    rare_class_share: float
    claims: int


def measure(told: Iterable[Document]) -> Measured:
    """Count the flaws of some documents.

    Example:
        >>> measured = measure(islice(documents(0), 2000))
        >>> 0.06 < measured.wrong_fact_share < 0.10
        True
    """
    wrong, animals, pronouns = Counter[bool](), Counter[bool](), Counter[tuple[str, str]]()
    known = world()
    for document in told:
        pronouns.update(document.pronouns)
        for claim in document.claims:
            if claim.subject in known.animals:
                animals[claim.subject in CLASSES[RARE_CLASS]] += 1
            else:
                wrong[not claim.is_true] += 1
    return Measured(
        wrong_fact_share=_share(wrong[True], wrong.total()),
        share_she={job: _share(pronouns[job, "she"], pronouns[job, "she"] + pronouns[job, "he"]) for job in JOBS},
        rare_class_share=_share(animals[True], animals.total()),
        claims=wrong.total() + animals.total(),
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
