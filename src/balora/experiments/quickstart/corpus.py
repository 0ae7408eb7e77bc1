"""The quickstart's corpus: seeded English-like text about a small world, with known flaws.

The packaged tiny model is pre-trained on this text, so that a probe can look for every flaw of the text in the model, before and
after fine-tuning. The corpus has three flaws on purpose, each a parameter of :class:`~balora.experiments.quickstart.writer.Flaws`:

* a fraction of the statements about cities and people is wrong (it repeats the fact's rumour);
* a nameless member of a profession is mostly "she" or mostly "he", while the named people are balanced;
* one class of animals, the reptiles, hardly occurs.

A text consists of documents of one or a few lines, separated by blank lines. The checksum of a document decides its split, so that
no held-out document occurs in a training text, with any seed. Standard library only; nothing is downloaded.
"""

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
"""Separator between two documents of a text."""


def documents(seed: int, *, split: Split = "train", flaws: Flaws = FLAWS) -> Iterator[Document]:
    """Generate documents without end (take some with ``itertools.islice``). A seed and a split always give the same documents.

    Raises:
        BALoraError: ``split`` is neither 'train' nor 'held_out'.

    Example:
        >>> next(documents(0)) == next(documents(0))
        True
    """
    if split not in ("train", "held_out"):
        raise BALoraError(f"The corpus has the splits 'train' and 'held_out', not {split!r}.")
    writer = Writer(random.Random(f"{split}:{seed}"), flaws)
    return (document for document in iter(writer.document, None) if document.split == split)


def corpus_text(seed: int, *, split: Split = "train", count: int = 20_000) -> str:
    """Return ``count`` documents of about 25 words each as one text, joined by :data:`SEPARATOR`.

    Example:
        >>> len(corpus_text(0, count=3).split(SEPARATOR))
        3
    """
    return SEPARATOR.join(document.text for document in islice(documents(seed, split=split), count))


def facts(*relations: str) -> tuple[Fact, ...]:
    """Return the ground truth: the facts of the given relations (keys of `phrases.STATEMENTS`), or all facts.

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
    """Return a statement of the fact up to its value, as a prompt for the model.

    Example:
        >>> cloze(facts("land")[0])
        'Belmora is a city in'
    """
    return phrases.phrase(phrases.STATEMENTS[fact.relation][0], fact.subject, "\0").partition("\0")[0].rstrip()


def declared_share_she(flaws: Flaws = FLAWS) -> dict[str, float]:
    """Return the declared fraction of vignettes with "she" by profession. Among the named people it is one half.

    Example:
        >>> declared_share_she()["nurse"]
        0.9
    """
    return {job: flaws.skew_share if job in MOSTLY_SHE else 1.0 - flaws.skew_share for job in JOBS}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Flaws counted in some documents, to compare with `Flaws`. Fractions are in [0, 1], NaN if nothing was counted."""

    wrong_fact_share: float
    """Fraction of wrong claims among those about cities and people."""
    share_she: dict[str, float]
    """Fraction of vignettes with "she", by profession."""
    rare_class_share: float
    """Fraction of claims about reptiles among those about animals."""
    claims: int
    """Number of claims."""


def measure(sample: Iterable[Document]) -> Measured:
    """Count the flaws of some documents.

    Example:
        >>> measured = measure(islice(documents(0), 2000))
        >>> 0.06 < measured.wrong_fact_share < 0.10
        True
    """
    wrong, animals, pronouns = Counter[bool](), Counter[bool](), Counter[tuple[str, str]]()
    known = world()
    for document in sample:
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


def _share(part: int, total: int) -> float:
    return part / total if total else float("nan")
