"""The small invented world of the quickstart's corpus: the ground truth.

Cities, people and animals have a fixed set of facts. Names of cities and people are composed of syllables and mean no real place or
person. Every fact about a city or a person also has one *rumour*, the value in the corpus's wrong statements. There is only one per
fact, so that a model can learn it and a probe can look for it.

The world is the same for every seed of the corpus; only the text about it varies. Standard library only.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

LANDS = ("Orin", "Tavia", "Meru", "Sulland", "Halvia", "Quenland", "Brisk", "Ostmark")
RIVERS = ("Tase", "Wendle", "Ilve", "Garrow", "Nesk", "Brool", "Sarn", "Ember", "Lonn", "Vash", "Thorn", "Oule")
GOODS = (
    "honey", "salt", "wool", "glass", "paper", "cheese", "rope", "silver",
    "tea", "clay", "wax", "leather", "linen", "soap", "oil", "iron",
)  # fmt: skip
LANDMARKS = (
    "an old tower", "a stone bridge", "a white temple", "a round well", "a tall clock", "a walled garden",
    "a copper statue", "a wooden theatre", "a deep harbour", "a windmill", "a great library", "a glass house",
)  # fmt: skip
JOBS = ("nurse", "teacher", "weaver", "singer", "baker", "smith", "sailor", "miner", "doctor", "farmer")
PETS = ("cat", "dog", "pony", "goat", "rabbit", "parrot", "hen", "mouse", "donkey", "lamb")
COLOURS = ("red", "blue", "green", "yellow", "white", "black", "brown", "grey")
DISHES = ("soup", "bread", "rice", "plum cake", "fried fish", "beans", "porridge", "noodles", "apple pie", "stew")

_CITY_STARTS = ("Bel", "Tar", "Mor", "Lin", "Os", "Ves", "Kal", "Dun")
_CITY_ENDS = ("mora", "wick", "ford", "haven", "stad", "dale")
_NAME_STARTS = ("Al", "Be", "Da", "El", "Fi", "Ja", "Ka", "Lo", "Mi", "Ne", "Ro", "Ta")
_NAME_ENDS = ("bin", "lin", "mo", "na", "ris", "vek", "do", "sha")

RARE_CLASS = "reptile"
"""The animal class that hardly occurs in the corpus."""
CLASSES: dict[str, tuple[str, ...]] = {
    "bird": ("sparrow", "crow", "heron", "owl", "robin", "duck", "gull", "finch"),
    "fish": ("trout", "carp", "pike", "perch", "eel", "cod", "salmon", "herring"),
    "mammal": ("fox", "bear", "mole", "hare", "otter", "badger", "deer", "wolf"),
    "insect": ("bee", "ant", "moth", "wasp", "beetle", "cricket", "fly", "gnat"),
    RARE_CLASS: ("lizard", "snake", "turtle", "gecko"),
}
_HABITATS = {
    "bird": ("forest", "marsh", "field", "garden"),
    "fish": ("river", "lake", "sea"),
    "mammal": ("forest", "field", "hills", "marsh"),
    "insect": ("garden", "forest", "field", "meadow"),
    RARE_CLASS: ("desert", "hills", "marsh"),
}
_FOODS = ("seeds", "worms", "berries", "leaves", "grass", "roots", "crumbs", "snails")

CITY_RELATIONS = ("land", "river", "goods", "landmark")
PERSON_RELATIONS = ("home", "job", "pet", "colour", "dish")
ANIMAL_RELATIONS = ("class", "habitat", "food", "look")


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A fact, and its rumour: the value in wrong statements, None if the corpus never has a wrong one."""

    subject: str
    relation: str
    value: str
    rumour: str | None = None


@dataclass(frozen=True, kw_only=True)
class World:
    """Facts by (subject, relation), and the subjects of each kind in a fixed order.

    Attributes:
        facts: ``facts["Belmora", "land"]`` is the :class:`Fact` of the land that Belmora lies in.
        cities: Names of the cities.
        people: Names of the people.
        animals: Names of the animals, the rare class last.
        pronoun: "she" or "he" for each person, as equally often as possible, within a profession and overall.
    """

    facts: dict[tuple[str, str], Fact]
    cities: tuple[str, ...]
    people: tuple[str, ...]
    animals: tuple[str, ...]
    pronoun: dict[str, str]

    def truth(self, subject: str, relation: str) -> str:
        """Return the true value of a relation, as in ``truth("Belmora", "land")``."""
        return self.facts[subject, relation].value

    def having(self, relation: str, value: str, *, rumoured: bool = False) -> tuple[str, ...]:
        """Return the subjects for which the value is true (or rumoured), in the order of the world."""
        own = (fact for fact in self.facts.values() if fact.relation == relation)
        return tuple(fact.subject for fact in own if (fact.rumour if rumoured else fact.value) == value)


def _facts_of(subjects: Sequence[str], options: dict[str, Sequence[str]], rng: random.Random) -> list[Fact]:
    """Give every subject a value and a rumour for each relation; each value occurs equally often, up to one."""
    facts = []
    for relation, values in options.items():
        chosen = [values[index % len(values)] for index in range(len(subjects))]
        rng.shuffle(chosen)
        for subject, value in zip(subjects, chosen, strict=True):
            rumour = rng.choice([other for other in values if other != value])
            facts.append(Fact(subject=subject, relation=relation, value=value, rumour=rumour))
    return facts


@cache
def world() -> World:
    """Return the world: 48 cities with 4 facts each, 96 people with 5, and 36 animals with 4. It is always the same.

    Example:
        >>> known = world()
        >>> len(known.cities), len(known.people), len(known.animals), len(known.facts)
        (48, 96, 36, 816)
        >>> known.truth("owl", "class")
        'bird'
    """
    rng = random.Random("the quickstart's world")
    cities = tuple(start + end for start in _CITY_STARTS for end in _CITY_ENDS)
    people = tuple(start + end for start in _NAME_STARTS for end in _NAME_ENDS)
    facts = _facts_of(cities, {"land": LANDS, "river": RIVERS, "goods": GOODS, "landmark": LANDMARKS}, rng)
    facts += _facts_of(people, {"home": cities, "job": JOBS, "pet": PETS, "colour": COLOURS, "dish": DISHES}, rng)
    for name, members in CLASSES.items():
        for animal in members:
            values = (name, rng.choice(_HABITATS[name]), rng.choice(_FOODS), rng.choice(COLOURS))
            pairs = zip(ANIMAL_RELATIONS, values, strict=True)
            facts += [Fact(subject=animal, relation=relation, value=value) for relation, value in pairs]
    pronoun: dict[str, str] = {}
    for job in JOBS:
        holders = [fact.subject for fact in facts if fact.relation == "job" and fact.value == job]
        # Alternate, beginning with the pronoun that is rarer so far: 10 people of a job are 5 and 5, 9 are 5 and 4.
        lagging = list(pronoun.values()).count("she") > list(pronoun.values()).count("he")
        pronoun |= {person: "he" if (index + lagging) % 2 else "she" for index, person in enumerate(holders)}
    return World(
        facts={(fact.subject, fact.relation): fact for fact in facts},
        cities=cities,
        people=people,
        animals=tuple(animal for members in CLASSES.values() for animal in members),
        pronoun=pronoun,
    )
