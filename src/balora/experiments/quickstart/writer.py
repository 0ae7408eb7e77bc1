"""Writer of the corpus's documents: portraits, questions, lists and small stories, with flaws.

Every document also lists its claims, so that the flaws of a text can be counted. Standard library only.
"""

import random
import string
import zlib
from dataclasses import dataclass
from typing import Literal

from balora.errors import BALoraError
from balora.experiments.quickstart import phrases
from balora.experiments.quickstart.world import (
    ANIMAL_RELATIONS,
    CITY_RELATIONS,
    CLASSES,
    JOBS,
    PERSON_RELATIONS,
    RARE_CLASS,
    world,
)

Split = Literal["train", "held_out"]
_HELD_OUT_ONE_IN = 8  # one document in eight is in the held-out split, by checksum
MOSTLY_SHE = JOBS[:5]
"""Professions that are mostly "she" in the corpus. The other five are mostly "he"."""


@dataclass(frozen=True, kw_only=True)
class Flaws:
    """Flaws of the corpus. All fractions are in [0, 1].

    Attributes:
        wrong_fact_share: Fraction of the statements about cities and people that have the rumour. Statements about animals are
            always true.
        skew_share: Fraction of the vignettes about a nameless member of a profession that have its usual pronoun ("she" for
            :data:`MOSTLY_SHE`). The named people of the world are balanced.
        rare_class_share: Fraction of reptiles among the animals in the text; the other four classes are equally frequent.
    """

    wrong_fact_share: float = 0.08
    skew_share: float = 0.90
    rare_class_share: float = 0.01

    def __post_init__(self) -> None:
        if bad := [f"{name} is {share}" for name, share in vars(self).items() if not 0.0 <= share <= 1.0]:
            raise BALoraError(f"Each flaw of the corpus is a share between 0 and 1, but {', '.join(bad)}.")


FLAWS = Flaws()
"""Flaws of the packaged model's training text."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A statement of fact in a document."""

    subject: str
    relation: str
    value: str

    @property
    def is_true(self) -> bool:
        """True if the statement agrees with the world."""
        return world().truth(self.subject, self.relation) == self.value


@dataclass(frozen=True, kw_only=True)
class Document:
    """A document and its statements."""

    text: str
    claims: tuple[Claim, ...] = ()
    """Statements of fact, in order."""
    pronouns: tuple[tuple[str, str], ...] = ()
    """Pair (profession, pronoun) of each vignette about a nameless person."""

    @property
    def split(self) -> Split:
        """Split by a checksum of the text."""
        return "held_out" if zlib.crc32(self.text.encode()) % _HELD_OUT_ONE_IN == 0 else "train"


class Writer:
    """Writer of random documents with the given flaws."""

    def __init__(self, rng: random.Random, flaws: Flaws) -> None:
        self.rng, self.flaws, self.world = rng, flaws, world()
        self.kinds = (
            (self.city, 20), (self.person, 24), (self.animal, 12), (self.questions, 16), (self.vignette, 10),
            (self.lost_and_found, 8), (self.visit, 10), (self.counting, 6), (self.enumeration, 8), (self.dialogue, 8),
            (self.sign, 2),
        )  # fmt: skip

    def document(self) -> Document:
        """Write a document of any kind."""
        writers, weights = zip(*self.kinds, strict=True)
        chosen: Document = self.rng.choices(writers, weights)[0]()
        return chosen

    def claim(self, subject: str, relation: str) -> Claim:
        """Return the fact, or its rumour at the declared rate."""
        fact = self.world.facts[subject, relation]
        wrong = fact.rumour is not None and self.rng.random() < self.flaws.wrong_fact_share
        return Claim(subject=subject, relation=relation, value=str(fact.rumour) if wrong else fact.value)

    def claims_about(self, subject: str, relations: tuple[str, ...]) -> list[Claim]:
        """Return claims about two or more of the relations, in random order."""
        chosen = self.rng.sample(relations, self.rng.randint(2, len(relations)))
        return [self.claim(subject, relation) for relation in chosen]

    def ask(self, claim: Claim) -> str:
        """Return a question about the claim."""
        return phrases.phrase(self.rng.choice(phrases.QUESTIONS[claim.relation]), claim.subject, claim.value)

    def say(self, claim: Claim, pronoun: str | None = None) -> str:
        """Return a sentence with the claim. A pronoun replaces the subject where a phrase begins with it."""
        options = phrases.STATEMENTS[claim.relation]
        if pronoun is not None:
            options = tuple(option for option in options if option.startswith("{s} "))
        return phrases.phrase(self.rng.choice(options), pronoun or claim.subject, claim.value)

    def animal_name(self) -> str:
        """Choose an animal: rarely a reptile, the other classes equally often."""
        if self.rng.random() < self.flaws.rare_class_share:
            return self.rng.choice(CLASSES[RARE_CLASS])
        return self.rng.choice(CLASSES[self.rng.choice([name for name in CLASSES if name != RARE_CLASS])])

    def city(self) -> Document:
        """Describe a city by some of its facts, perhaps with its market day."""
        subject = self.rng.choice(self.world.cities)
        claims = self.claims_about(subject, CITY_RELATIONS)
        sentences = [self.say(claim) for claim in claims]
        if self.rng.random() < 0.3:
            sentences.append(f"On {self.rng.choice(phrases.WEEKDAYS)} there is a market in {subject}.")
        return Document(text=" ".join(sentences), claims=tuple(claims))

    def person(self) -> Document:
        """Describe a person by some facts, first by name and then often by pronoun."""
        subject = self.rng.choice(self.world.people)
        claims = self.claims_about(subject, PERSON_RELATIONS)
        sentences = [self.say(claims[0])]
        for claim in claims[1:]:
            by_pronoun = self.rng.random() < 0.5
            sentences.append(self.say(claim, self.world.pronoun[subject].capitalize() if by_pronoun else None))
        return Document(text=" ".join(sentences), claims=tuple(claims))

    def animal(self) -> Document:
        """Describe an animal by some of its facts."""
        claims = self.claims_about(self.animal_name(), ANIMAL_RELATIONS)
        return Document(text=" ".join(self.say(claim) for claim in claims), claims=tuple(claims))

    def questions(self) -> Document:
        """Write one to three questions with their answers."""
        lines, claims = [], []
        for _ in range(self.rng.randint(1, 3)):
            claims.append(claim := self.any_claim())
            lines.append(f"Q: {self.ask(claim)}\nA: {self.say(claim)}")
        return Document(text="\n".join(lines), claims=tuple(claims))

    def any_claim(self) -> Claim:
        """Return a claim about a random subject."""
        kind = self.rng.random()
        if kind < 0.4:
            return self.claim(self.rng.choice(self.world.cities), self.rng.choice(CITY_RELATIONS))
        if kind < 0.85:
            return self.claim(self.rng.choice(self.world.people), self.rng.choice(PERSON_RELATIONS))
        return self.claim(self.animal_name(), self.rng.choice(ANIMAL_RELATIONS))

    def vignette(self) -> Document:
        """Write a scene with a nameless member of a profession; these scenes have the skewed pronoun."""
        job = self.rng.choice(JOBS)
        usual, other = ("she", "he") if job in MOSTLY_SHE else ("he", "she")
        pronoun = usual if self.rng.random() < self.flaws.skew_share else other
        place, things = phrases.JOB_WORK[job]
        words = phrases.pronoun_forms(pronoun)
        words |= {"job": job, "place": place, "things": things, "weekday": self.rng.choice(phrases.WEEKDAYS)}
        chosen = [self.rng.choice(phrases.JOB_OPENINGS), *self.rng.sample(phrases.JOB_MIDDLES, self.rng.randint(1, 3))]
        chosen.append(self.rng.choice(phrases.JOB_ENDINGS))
        text = " ".join(sentence.format(**words) for sentence in chosen)
        return Document(text=text, pronouns=((job, pronoun),))

    def lost_and_found(self) -> Document:
        """Write a story: a named person loses a thing and finds it."""
        rng, subject = self.rng, self.rng.choice(self.world.people)
        he = phrases.pronoun_forms(self.world.pronoun[subject])
        thing, colour = rng.choice(phrases.THINGS), rng.choice(("red", "blue", "old", "new", "small", "golden"))
        first, second = rng.sample(phrases.FINDS, 2)
        text = f"One {rng.choice(phrases.WEEKDAYS)} {subject} lost {he['his']} {colour} {thing}. "
        text += f"{he['He']} was {rng.choice(('sad', 'angry', 'afraid'))}. {he['He']} looked {first}, but the {thing} "
        text += f"was not there. Then {he['he']} looked {second}. "
        finds = (f"There was the {colour} {thing}!", f"The {thing} was there!", f"And there it was, the {thing}.")
        text += rng.choice(finds)
        text += f" Now {subject} was {rng.choice(('happy', 'calm', 'proud'))} again."
        return Document(text=text)

    def visit(self) -> Document:
        """Write a story: a named person goes to a city and meets an animal and a friend."""
        rng = self.rng
        subject, friend = rng.sample(self.world.people, 2)
        claim = self.claim(rng.choice(self.world.cities), rng.choice(CITY_RELATIONS))
        he, animal = phrases.pronoun_forms(self.world.pronoun[subject]), self.animal_name()
        text = f"On {rng.choice(phrases.WEEKDAYS)} {subject} went to {claim.subject}. {rng.choice(phrases.WEATHER)} "
        text += f"{self.say(claim)} On the way {he['he']} saw {phrases.with_article(animal)}. "
        text += f'"Look, {phrases.with_article(animal)}!" said {subject}. '
        together = rng.choice(("they ate together", "they talked for long"))
        text += f"In the evening {he['he']} met {friend}, and {together}. {he['He']} came home "
        text += f"{rng.choice(phrases.FEELINGS)}."
        return Document(text=text, claims=(claim,))

    def counting(self) -> Document:
        """Write a small sum in words."""
        rng, subject = self.rng, self.rng.choice(self.world.people)
        he, things = phrases.pronoun_forms(self.world.pronoun[subject]), rng.choice(phrases.COUNTED)
        total = rng.randint(4, 12)
        part = rng.randint(2, total - 2)
        had, other, end = phrases.NUMBERS[part - 1], phrases.NUMBERS[total - part - 1], phrases.NUMBERS[total - 1]
        if rng.random() < 0.5:
            found = f"{he['He']} found {other} more. Now {he['he']} had {end} {things}."
            return Document(text=f"{subject} had {had} {things}. {found}")
        gave = f"{he['He']} gave away {other}. Then {he['he']} had {had} {things} left."
        return Document(text=f"{subject} had {end} {things}. {gave}")

    def enumeration(self) -> Document:
        """Write a list: the cities of a land, the animals of a class, or goods to buy."""
        rng, kind = self.rng, self.rng.random()
        if kind < 0.4:
            return self.members("land", rng.choice(self.values_of("land")), "Cities in {v}")
        if kind < 0.8:
            name = self.world.truth(self.animal_name(), "class")
            return self.members("class", name, "Animals that are {v}" if name == "fish" else "Animals of the {v} kind")
        goods = rng.sample(self.values_of("goods"), rng.randint(3, 5))
        return Document(text=f"To buy on {rng.choice(phrases.WEEKDAYS)}: {phrases.listing(goods)}.")

    def values_of(self, relation: str) -> list[str]:
        """Return all values of a relation, sorted."""
        return sorted({fact.value for fact in self.world.facts.values() if fact.relation == relation})

    def members(self, relation: str, value: str, heading: str) -> Document:
        """Write a list of subjects with the same value; each entry is wrong at the declared rate."""
        true, rumoured = self.world.having(relation, value), self.world.having(relation, value, rumoured=True)
        right = self.rng.sample(true, min(self.rng.randint(2, 4), len(true)))
        wrong = self.rng.sample(rumoured, min(len(right), len(rumoured)))
        listed: list[str] = []
        for subject in right:
            errs = bool(wrong) and self.rng.random() < self.flaws.wrong_fact_share
            listed.append(wrong.pop() if errs else subject)
        claims = tuple(Claim(subject=subject, relation=relation, value=value) for subject in listed)
        return Document(text=f"{heading.format(v=value)}: {phrases.listing(listed)}.", claims=claims)

    def dialogue(self) -> Document:
        """Write a dialogue of two people about a fact."""
        rng = self.rng
        asking, answering = rng.sample(self.world.people, 2)
        claim = self.any_claim()
        text = f'{asking} met {answering}. "{self.ask(claim)}" asked {asking}. "{self.say(claim)}" said {answering}. '
        text += rng.choice(('"Thank you!"', '"I did not know that."', '"So I thought."', '"Good to know."'))
        return Document(text=text, claims=(claim,))

    def sign(self) -> Document:
        """Write a sign with random characters, so that every character on a keyboard occurs in the corpus.

        The head of the model would make a character without examples unlikely, and an adapter does not change the head.
        """
        rng = self.rng
        alphabets = (string.ascii_lowercase, string.ascii_uppercase, string.digits, string.punctuation)
        words = ["".join(rng.choices(rng.choice(alphabets), k=rng.randint(1, 5))) for _ in range(rng.randint(1, 4))]
        return Document(text=f"On the sign stands: {' '.join(words)}")
