"""`Anchors`: text that is not the task's, on which the tuned model is held to the pre-trained one.

The settings alone, checked on construction; `balora.anchoring` does the work. Not in the paper: see docs/explanation/method.md.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from balora.errors import BALoraError, raise_all, shown, suggest

Rows = Sequence[Mapping[str, Sequence[int]]]
Requirement = tuple[str, Callable[[Any], bool]]
GENERATED = 512
"""Sequences of ``anchor: generated``; a run samples no more than it uses."""


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(least: int) -> Requirement:
    return f"a whole number of at least {least}", lambda value: type(value) is int and value >= least


_LARGEST_SHARE = 100
_ABOVE_ZERO: Requirement = ("a number above 0", lambda value: _is_number(value) and value > 0)
_NAME: Requirement = ("a name", lambda value: value is None or (isinstance(value, str) and bool(value.strip())))
_REQUIREMENTS: dict[str, Requirement] = {
    "generate": ("a whole number of at least 8", lambda value: value is None or (type(value) is int and value >= 8)),
    **dict.fromkeys(("name", "split", "column", "messages", "prompt", "response"), _NAME),
    "sequences": _whole(8),
    "tokens": _whole(8),
    "every": _whole(1),
    "share": (
        f"a number above 0, at most {_LARGEST_SHARE}",
        lambda value: _ABOVE_ZERO[1](value) and value <= _LARGEST_SHARE,
    ),
    **dict.fromkeys(("weight", "temperature"), _ABOVE_ZERO),
    "budget": ("a number of nats per token above 0", lambda value: value is None or _ABOVE_ZERO[1](value)),
    "control": _whole(8),
    "held_out": ("a fraction above 0 and below 1", lambda value: _is_number(value) and 0 < value < 1),
    "teacher_cache": ("auto or off", ("auto", "off").__contains__),
    "memory": _whole(1),
    "measure_only": ("true or false", lambda value: isinstance(value, bool)),
}


def _names_source(text: str) -> bool:
    """Return whether a text is the name of a file, folder or hub dataset, such as ``general.jsonl`` or ``owner/name``."""
    return (
        re.fullmatch(r"[\w.~-]*(/[\w.*-]+)+|[\w.*/-]+\.(txt|jsonl?|ndjson|csv|tsv|parquet|arrow)(\.\w+)?", text)
        is not None
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Anchors:
    r"""Source of the anchors, how many a step takes, and how strongly they hold.

    Each optimizer step adds to its loss λ_A times

    .. math:: L_A = \frac{T^2}{M_A} \sum_i \mathrm{KL}(\mathrm{softmax}(z_{P,i} / T) \,\|\, \mathrm{softmax}(z_{F,i} / T))

    over the M_A positions of some anchors; there is no loss of a task on them. With T = 1 it is the drift in nats per token.

    Raises:
        BALoraError: One or more values are out of range, or there is not exactly one source; the message names all of them.

    Example:
        >>> Anchors.generated(64, weight=5.0).share
        0.25
        >>> Anchors.from_value({"text": "general.jsonl", "budget": 0.02}).budget
        0.02
    """

    text: str | tuple[str, ...] | None = None
    """Source: a file, folder or hub id; in Python also the texts themselves."""
    generate: int | None = None
    """Source: this number of sequences that the pre-trained model writes itself, at temperature 1, without truncation."""
    rows: Rows | None = None
    """Source, in Python: rows of the model's inputs as lists of numbers, with ``labels`` (-100: not compared) if need be."""
    name: str | None = None
    """Configuration of a hub dataset."""
    split: str | None = None
    """Split of the text; default train."""
    column: str = "text"
    """Column of plain text."""
    messages: str | None = None
    """Column of conversations, rendered by the chat template; in place of ``column``."""
    prompt: str | None = None
    """Column of prompts; with ``response`` in place of ``column``."""
    response: str | None = None
    """Column of responses."""
    sequences: int = 512
    """Sequences that are taken from a text, at random, at least 8."""
    tokens: int = 128
    """Greatest length of a sequence in tokens, at least 8; a longer text is cut into pieces."""
    share: float = 0.25
    """Anchor tokens per token of the task in an optimizer step, above 0 and at most 100."""
    every: int = 1
    """n ≥ 1: hold in one of n steps at random, with n times the anchors and n times the weight; ``share`` stays the average.

    Small batches use a GPU badly: there, anchors of a quarter of the task's tokens took more than half of a step. How much larger
    n saves has not been measured."""
    weight: float = 2.0
    """λ_A > 0; with a budget, the weight to start from."""
    budget: float | None = None
    """Drift in nats per token that may be reached; λ_A then follows it, and a drift above it is taken off at the end by keeping
    a part of the change. None for a constant weight."""
    control: int = 256
    """With a budget: anchors that steer it, beside those that are trained on, and as many others on which the drift reached is
    reported. Both are sampled in addition to ``generate`` and ``sequences``; of given rows they are at most a quarter each. The
    standard error of the drift falls with the root of their number: on the packaged model it is 10 % of the drift with 256."""
    temperature: float = 1.0
    """T > 0. At 1, L_A of generated anchors is an unbiased estimate of KL(pre-trained ‖ tuned) per token."""
    held_out: float = 0.125
    """Fraction of the anchors that are not trained on, in (0, 1): on them the drift is measured. See ``control`` with a budget."""
    teacher_cache: str = "auto"
    """``auto`` runs the pre-trained model once over all anchors; ``off`` runs it at every step."""
    memory: int = 1024
    """MiB of host memory for its exact hidden states. What needs more is kept as its 64 likeliest tokens and their tail."""
    measure_only: bool = False
    """True: hold nothing, and measure the drift on the anchors held out after the training."""

    def __post_init__(self) -> None:
        problems = [
            f"anchor.{name} must be {requirement}, not {getattr(self, name)!r}."
            for name, (requirement, fits) in _REQUIREMENTS.items()
            if not fits(getattr(self, name))
        ]
        sources = [name for name in ("text", "generate", "rows") if getattr(self, name) is not None]
        if not sources:
            problems.append("anchor needs a source: `generated`, a file or hub id, or a section with text or generate.")
        elif len(sources) > 1:
            problems.append(f"anchor has {len(sources)} sources ({' and '.join(sources)}), and only one can be used.")
        if (self.prompt is None) != (self.response is None):
            problems.append("anchor.prompt and anchor.response belong together; give both or neither.")
        if self.text is not None and not isinstance(self.text, str):
            object.__setattr__(self, "text", tuple(self.text))
            if not self.text or not all(isinstance(text, str) for text in self.text):
                problems.append("anchor.text must be a file, a hub id, or a list of texts.")
        raise_all(problems, "The anchors cannot be used")

    @classmethod
    def generated(cls, n: int = GENERATED, **settings: Any) -> Anchors:
        """Return anchors that the pre-trained model writes itself; no data is needed."""
        return cls(generate=n, **settings)

    @classmethod
    def from_text(cls, text: str | Sequence[str], **settings: Any) -> Anchors:
        """Return anchors from a file, folder or hub id, or from a list of texts."""
        return cls(text=text if isinstance(text, str) else tuple(text), **settings)

    @classmethod
    def from_value(cls, value: Any) -> Anchors | None:
        """Read the ``anchor`` key of a config: ``generated``, a file or hub id, a section, or ``off``.

        Raises:
            BALoraError: The value is none of these, a key is unknown, or a value is out of range.
        """
        if value is None or value is False or isinstance(value, Anchors):
            return value or None
        if isinstance(value, str) and value.strip():
            if value == "off":
                return None
            # A hub id has an owner, so a word alone that is nearly one of these is a slip.
            hint = "" if value == "generated" or set(value) & set("/.") else suggest(value, ("generated", "off"))
            if hint:
                raise BALoraError(f"anchor is {value!r}, which is neither generated nor off.{hint}")
            return cls.generated() if value == "generated" else cls(text=value)
        if not isinstance(value, Mapping):
            raise BALoraError(f"anchor must be generated, a file, a hub id, a section or off, not {value!r}.")
        known = [field.name for field in dataclasses.fields(cls) if field.name != "rows"]
        given = {str(key): entry for key, entry in value.items() if entry is not None}
        raise_all(
            [f"Unknown key anchor.{key}.{suggest(key, known)}" for key in given if key not in known],
            "The anchors cannot be used",
        )
        texts = given.get("text")
        if isinstance(texts, list | tuple) and any(isinstance(text, str) and _names_source(text) for text in texts):
            raise BALoraError(
                f"anchor.text must be one file, folder or hub id, not the list {shown(texts)}: the entries of a list are texts. "
                "Several files: put them into one folder, or write a pattern such as data/*.jsonl."
            )
        return cls(**given)

    def to_dict(self) -> dict[str, Any]:
        """Return all settings as plain values, for YAML and JSON; `from_value` reads them. Rows are left out."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "rows"}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def describe(self) -> str:
        """Return the source in a few words."""
        if self.generate is not None:
            return "text that the pre-trained model wrote itself"
        return self.text if isinstance(self.text, str) else "given rows" if self.text is None else "given texts"
