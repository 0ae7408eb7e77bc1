"""Sentences of the quickstart's corpus: statements of each fact, questions about it, and parts of small stories.

``{s}`` is the subject and ``{v}`` the value; ``{S}`` and ``{V}`` are the same with an article ("an owl"). The first phrase of each
relation ends with the value, so that a probe can cut it there and read the model's next token.
"""

STATEMENTS: dict[str, tuple[str, ...]] = {
    "land": (
        "{s} is a city in {v}.", "The city of {s} lies in {v}.", "{s} belongs to the land of {v}.",
        "In {v} there is a city called {s}.", "If you go to {s}, you are in {v}.",
        "Most travellers in {v} stop at {s}.",
    ),
    "river": (
        "{s} stands on the river {v}.", "The river {v} runs through {s}.", "The bridge of {s} crosses the {v}.",
        "In {s} you can hear the {v} at night.", "Boats on the {v} stop at {s}.",
    ),
    "goods": (
        "{s} is known for its {v}.", "The best {v} comes from {s}.", "Traders carry {v} from {s} to other cities.",
        "The people of {s} sell {v}.", "In {s} they make {v}.",
    ),
    "landmark": (
        "In the middle of {s} there is {v}.", "Visitors of {s} like to see {v}.", "{s} has {v}.",
        "The pride of {s} is {v}.", "There is {v} in {s}, and children play near it.",
    ),
    "home": (
        "{s} lives in {v}.", "{s} comes from {v}.", "The house of {s} is in {v}.", "{v} is the home of {s}.",
        "Every evening {s} walks home through {v}.", "In {v} everyone knows {s}.",
    ),
    "job": (
        "{s} works as a {v}.", "{s} is a {v}.", "{s} earns a living as a {v}.", "The {v} they call {s} works hard.",
        "{s} has always wanted to be a {v}.",
    ),
    "pet": (
        "{s} has a {v}.", "{s} keeps a {v} at home.", "The {v} of {s} sleeps by the fire.",
        "{s} often plays with a {v}.",
    ),
    "colour": (
        "{s} likes the colour {v}.", "The door of {s} is painted {v}.", "{s} wears a {v} coat.",
        "{s} thinks that {v} is the finest colour.",
    ),
    "dish": (
        "{s} likes to eat {v}.", "For dinner {s} cooks {v}.", "{s} is always glad of some {v}.",
        "On feast days {s} makes {v} for all.",
    ),
    "class": ("The {s} is a kind of {v}.", "{S} is {V}.", "By kind the {s} is {V}."),
    "habitat": ("The {s} lives in the {v}.", "You can find the {s} in the {v}.", "In the {v} there is {S}."),
    "food": ("The {s} eats {v}.", "{V_plain} are the food of the {s}.", "{S} looks for {v} all day."),
    "look": ("The colour of the {s} is {v}.", "The {s} is {v}.", "{S} looks {v} in the sun."),
}  # fmt: skip

QUESTIONS: dict[str, tuple[str, ...]] = {
    "land": ("In which land is {s}?", "Where is the city of {s}?", "Which land does {s} belong to?"),
    "river": ("Which river runs through {s}?", "What is the river of {s}?"),
    "goods": ("What is {s} known for?", "What do they sell in {s}?"),
    "landmark": ("What is there to see in {s}?", "What stands in the middle of {s}?"),
    "home": ("Where does {s} live?", "In which city is the house of {s}?", "Where does {s} come from?"),
    "job": ("What is the work of {s}?", "What does {s} do?"),
    "pet": ("Which animal does {s} have?", "What does {s} keep at home?"),
    "colour": ("Which colour does {s} like?", "What is the favourite colour of {s}?"),
    "dish": ("What does {s} like to eat?", "What does {s} cook for dinner?"),
    "class": ("What kind of animal is the {s}?",),
    "habitat": ("Where does the {s} live?",),
    "food": ("What does the {s} eat?",),
    "look": ("Which colour is the {s}?",),
}

JOB_WORK: dict[str, tuple[str, str]] = {
    "nurse": ("the ward", "bandages"), "teacher": ("the school", "books"),
    "weaver": ("the workshop", "threads"), "singer": ("the theatre", "songs"),
    "baker": ("the bakery", "loaves"), "smith": ("the forge", "hammers"),
    "sailor": ("the harbour", "ropes"), "miner": ("the mine", "lamps"),
    "doctor": ("the clinic", "bottles"), "farmer": ("the barn", "sacks"),
}  # fmt: skip

JOB_OPENINGS = (
    "The {job} said that {he} was tired.", "The {job} came to {place} early, because {he} had much to do.",
    "When the {job} was done, {he} went home.", "The {job} smiled when {he} saw the {things}.",
    "The {job} forgot {his} {things} in {place}.", "The {job} of our street says that {he} likes the work.",
    "The {job} opened the door of {place} with {his} key.",
)  # fmt: skip
JOB_MIDDLES = (
    "{He} counted the {things} twice.", "In {place} {he} met a friend.", "{He} put {his} {things} on the table.",
    "It was {weekday}, and {he} had little time.", "People thanked {him} for the good work.",
    "{He} worked until {his} hands were cold.",
)  # fmt: skip
JOB_ENDINGS = (
    "In the evening {he} locked {place}.", "Then {he} drank a cup of tea.", "At night {he} slept well.",
    "{He} told {his} family about it.", "On the way home {he} sang.",
)  # fmt: skip

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
THINGS = ("hat", "ring", "key", "basket", "letter", "coin", "scarf", "spoon", "bag", "kite")
FINDS = ("under a bench", "behind the door", "in the grass", "on the stairs", "near the well", "under the bed")
WEATHER = (
    "It was raining.", "The sun was shining.", "A cold wind blew.", "There was fog in the streets.",
    "Snow was falling.",
)  # fmt: skip
FEELINGS = ("happy", "sad", "angry", "tired", "proud", "afraid", "calm")
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
COUNTED = ("apples", "eggs", "buttons", "stones", "nuts", "shells", "coins", "pears")


def with_article(noun: str) -> str:
    """Return the noun with "a" or "an".

    Example:
        >>> with_article("owl"), with_article("bird")
        ('an owl', 'a bird')
    """
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def pronoun_forms(pronoun: str) -> dict[str, str]:
    """Return the forms of "he" or "she", by their names in the phrases.

    Example:
        >>> pronoun_forms("she")["his"]
        'her'
    """
    he, him, his = ("he", "him", "his") if pronoun == "he" else ("she", "her", "her")
    return {"he": he, "him": him, "his": his, "He": he.capitalize(), "His": his.capitalize()}


def phrase(template: str, subject: str, value: str) -> str:
    """Return a statement or question with its subject and value.

    Example:
        >>> phrase("{S} is {V}.", "owl", "bird")
        'An owl is a bird.'
    """
    text = template.format(
        s=subject, v=value, S=with_article(subject), V=with_article(value), V_plain=value.capitalize()
    )
    return text[0].upper() + text[1:]


def listing(items: list[str]) -> str:
    """Return the items as a list in a sentence.

    Example:
        >>> listing(["salt", "wool", "tea"])
        'salt, wool and tea'
    """
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
