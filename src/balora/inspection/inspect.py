"""Read and tokenize the rows of a run as the training does, and count what is cut, left out and repeated."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from datasets import Dataset

from balora.config.run_config import RunConfig
from balora.data.collate import IGNORED
from balora.data.conversations.messages import read_conversation
from balora.data.examples import Examples
from balora.data.packing import capacity_of, describe_packing, group_by_capacity
from balora.data.perturbations import describe_perturbations
from balora.data.streaming import load_run_examples
from balora.data.tokenize import Encoded, Limit, limit_of, make_encoder
from balora.inspection.pieces import Piece, split_tokens
from balora.loading.head import head_classes
from balora.loading.pretrained import load_config, load_target_tokenizer, load_tokenizer, max_positions
from balora.loading.source import ModelSource

_CHUNK = 1000
_PLACES = 5
"""Places of rows that are named for each finding."""


@dataclasses.dataclass(frozen=True)
class Shown:
    """One example as the model sees it."""

    place: str
    """Row of the example, such as ``chat.jsonl line 3`` or ``training row 3``."""
    pieces: tuple[Piece, ...]
    """Tokens of the example, cut as in training; for seq2seq those of the encoder."""
    response: tuple[Piece, ...] = ()
    """Tokens of the decoder, for seq2seq."""
    target: str = ""
    """Class or score, for a classifier."""
    fate: str = ""
    """Empty if the example is trained on in full, else what happens to it and why."""


@dataclasses.dataclass
class Finding:
    """Something that holds for some rows."""

    count: int = 0
    places: list[str] = dataclasses.field(default_factory=list)
    """The first few rows."""

    def add(self, place: str) -> None:
        """Count one more row."""
        self.count += 1
        if len(self.places) < _PLACES:
            self.places.append(place)


@dataclasses.dataclass
class Part:
    """The training or the evaluation rows."""

    name: str
    """``training`` or ``evaluation``."""
    source: str
    limit: Limit
    rows: int = 0
    examples: int = 0
    """Examples that are used. A conversation can become several."""
    lengths: list[int] = dataclasses.field(default_factory=list)
    """Tokens of every example before it is cut."""
    tokens: int = 0
    """Tokens of the examples that are used, after cutting."""
    learnt: int = 0
    """Tokens of them that the loss counts; 0 for a classifier."""
    cut: dict[str, Finding] = dataclasses.field(default_factory=dict)
    """Examples that are cut, by the limit."""
    left_out: dict[str, Finding] = dataclasses.field(default_factory=dict)
    """Examples that are left out, by the reason."""
    identical: Finding = dataclasses.field(default_factory=Finding)
    """Rows that are equal to an earlier one."""
    contradicting: Finding = dataclasses.field(default_factory=Finding)
    """Rows with the input of an earlier row and another answer. Case and white space do not count."""
    labels: Counter[str] = dataclasses.field(default_factory=Counter)
    scores: list[float] = dataclasses.field(default_factory=list)
    shown: list[Shown] = dataclasses.field(default_factory=list)
    odd: list[Shown] = dataclasses.field(default_factory=list)
    """The first example that is cut, and the first that is left out."""


@dataclasses.dataclass
class Inspection:
    """Result of `inspect`: the rows of each part as the model sees them, and notes on them."""

    config: RunConfig
    train: Part
    eval: Part | None
    notes: list[str]
    """Remarks of the readers, such as a doubt about a label."""
    overlap: Finding = dataclasses.field(default_factory=Finding)
    """Evaluation rows that are also training rows."""
    similar: Finding = dataclasses.field(default_factory=Finding)
    """Evaluation rows whose input is in the training rows, apart from case and white space."""
    learns_tokens: bool = True
    """False for a classifier, which learns a class or score."""

    @property
    def parts(self) -> list[Part]:
        """The training rows, and the evaluation rows if there are any."""
        return [self.train] + ([self.eval] if self.eval is not None else [])


def inspect(config: RunConfig, *, rows: int = 3, first: int = 1) -> Inspection:
    """Look at the rows of a run.

    Args:
        config: Config of the run. Of its model only the tokenizer and the config are loaded.
        rows: Number of training rows to show.
        first: Number of the first one, from 1.

    Raises:
        BALoraError: The data, the tokenizer or the model's config cannot be used.
    """
    source = ModelSource.from_config(config)
    tokenizer, target = load_tokenizer(source), load_target_tokenizer(source)
    with _collected_notes() as notes:
        examples = load_run_examples(config.data, config.task, config.seed, head=head_classes(source))
    notes = [note for note in notes if "are also training rows" not in note]  # counted below, with their places
    if config.data.streaming:
        notes.append(f"data.streaming: only the first {len(examples.train):,} rows were looked at.")
    if examples.perturbations:
        notes.append(describe_perturbations(examples.perturbations) + ".")
    reader = _Reader(config, examples, tokenizer, target or tokenizer, max_positions(load_config(source)))
    wanted = range(first - 1, first - 1 + rows)
    train = reader.read(examples.train, "training", examples.train_source, wanted)
    if config.data.packing:
        train.shown = reader.packed(examples.train, train, wanted)
    found = Inspection(config, train, None, notes, learns_tokens=examples.num_labels is None)
    if examples.eval is not None:
        found.eval = reader.read(examples.eval, "evaluation", str(examples.eval_source), range(0))
        _find_overlap(examples, found)
    notes += reader.notes
    return found


class _Reader:
    """Tokenization of the parts of a data set, with counts."""

    def __init__(
        self, config: RunConfig, examples: Examples, tokenizer: Any, target: Any, positions: int | None
    ) -> None:
        self.config, self.examples, self.tokenizer, self.target = config, examples, tokenizer, target
        self.positions, self.notes = positions, list[str]()
        self.used: list[tuple[int, int, int]] = []
        """Row, number within the row, and tokens of each training example, if they are packed."""

    def read(self, dataset: Dataset, name: str, source: str, shown: range) -> Part:
        data, task = self.config.data, self.config.task
        of = "prompts" if task == "seq2seq" else "rows"
        limit = limit_of(self.tokenizer, data.max_length, "data.max_length", self.positions, of=of)
        target = self.target if self.target is not self.tokenizer else None
        encode, notes = make_encoder(self.examples.form, self.tokenizer, data, task, limit, target, self.positions)
        part = Part(name, source, limit, rows=len(dataset))
        # A conversation can become several examples, so that only a batch of one says which row they are of.
        size = 1 if self.examples.form == "messages" else _CHUNK
        for start in range(0, len(dataset), size):
            batch = dataset[start : start + size]
            count = len(next(iter(batch.values())))
            for number, row in enumerate(encode(batch)):
                at = start + min(number, count - 1)
                if self.config.data.packing and name == "training" and 0 < row.needed <= limit.tokens:
                    self.used.append((at, number if size == 1 else number - (at - start), len(row.input_ids)))
                self._count(part, row, _place(dataset, at, name), at in shown)
        _find_repeated(dataset, part)
        self._count_labels(dataset, part)
        self.notes += notes(name)
        return part

    def packed(self, dataset: Dataset, part: Part, shown: range) -> list[Shown]:
        """Pack the training examples as `balora.data.packing` does; return some packed rows, example by example."""
        capacity = capacity_of(self.config.data)
        groups = group_by_capacity([length for _, _, length in self.used], capacity)
        self.notes.append(describe_packing(part.examples, part.tokens, len(groups), capacity))
        data, task = self.config.data, self.config.task
        encode, _ = make_encoder(self.examples.form, self.tokenizer, data, task, part.limit, None, self.positions)
        found = []
        for number in range(shown.start, min(shown.stop, len(groups))):
            start = 0
            for at, within, length in (self.used[example] for example in groups[number]):
                row = list(encode(dataset[at : at + 1]))[within]
                assert isinstance(row.labels, list)
                labels = [IGNORED, *row.labels[1:]]  # the token before the first one belongs to another example
                place = (
                    f"packed row {number + 1}, tokens {start + 1}-{start + length}: {_place(dataset, at, part.name)}"
                )
                found.append(self._show(dataclasses.replace(row, labels=labels), place, ""))
                start += length
        return found

    def _count(self, part: Part, row: Encoded, place: str, is_shown: bool) -> None:
        part.lengths.append(row.total)
        fates: list[tuple[dict[str, Finding], str]] = []
        if not row.needed:
            fates.append((part.left_out, "nothing to learn: no token of a response follows the first token"))
        elif row.needed > part.limit.tokens:
            fates.append((part.left_out, f"its prompt alone fills {part.limit.tokens} tokens ({part.limit.origin})"))
        else:
            fates += [(part.cut, f"{at.of} longer than {at.tokens} tokens ({at.origin})") for at in row.cut]
            part.examples += 1
            part.tokens += len(row.input_ids)
            if isinstance(row.labels, list):
                part.learnt += sum(label != IGNORED for label in row.labels)
        fate = "; ".join(f"{'left out' if found is part.left_out else 'cut'}: {why}" for found, why in fates)
        is_new = any(why not in found for found, why in fates)
        for found, why in fates:
            found.setdefault(why, Finding()).add(place)
        if is_shown:
            part.shown.append(self._show(row, place, fate))
        elif is_new:
            part.odd.append(self._show(row, place, fate))

    def _show(self, row: Encoded, place: str, fate: str) -> Shown:
        if self.config.task == "seq2seq" and isinstance(row.labels, list):
            pieces = split_tokens(self.tokenizer, row.input_ids, None)
            response = split_tokens(self.target, row.labels, row.labels)
            return Shown(place, tuple(pieces), tuple(response), fate=fate)
        if isinstance(row.labels, list):
            return Shown(place, tuple(split_tokens(self.tokenizer, row.input_ids, row.labels)), fate=fate)
        names = self.examples.label_names
        target = names[int(row.labels)] if names else f"{row.labels:g}"
        return Shown(place, tuple(split_tokens(self.tokenizer, row.input_ids, None)), target=target, fate=fate)

    def _count_labels(self, dataset: Dataset, part: Part) -> None:
        names = self.examples.label_names
        if self.examples.form == "labelled" and names:
            part.labels = Counter(dict.fromkeys(names, 0))
            part.labels.update(names[number] for number in dataset["labels"])
        elif self.examples.form == "scored":
            part.scores = [float(score) for score in dataset["labels"]]
        elif names:  # a class as text
            part.labels = Counter(dict.fromkeys(names, 0))
            part.labels.update(dataset["response"])


def _place(dataset: Dataset, at: int, name: str) -> str:
    return str(dataset[at]["location"]) if "location" in dataset.column_names else f"{name} row {at + 1}"


def _rows(dataset: Dataset) -> Iterator[tuple[str, str]]:
    """Yield the input and the answer of each row as text."""
    for row in dataset:
        if "messages" in row:
            messages, context = read_conversation(row)
            last = max((n for n, message in enumerate(messages) if message["role"] == "assistant"), default=0)
            yield json.dumps([messages[:last], context], sort_keys=True), json.dumps(messages[last:], sort_keys=True)
        elif "response" in row:
            yield json.dumps([row["prompt"], row.get("input") or ""]), str(row["response"])
        else:
            yield json.dumps([row["text"], row.get("text_pair")]), str(row.get("labels", ""))


def _plain(text: str) -> str:
    """Return a text without differences of case and white space."""
    for written, plain in (("\\n", " "), ("\\t", " "), ('"', ' " ')):  # as JSON writes them
        text = text.replace(written, plain)
    return " ".join(text.casefold().split())


def _find_repeated(dataset: Dataset, part: Part) -> None:
    rows: set[int] = set()
    answers: dict[int, str] = {}
    for at, (given, answer) in enumerate(_rows(dataset)):
        key = hash((given, answer))
        if key in rows:
            part.identical.add(_place(dataset, at, part.name))
            continue
        rows.add(key)
        # Plain text has no answer, so its rows cannot contradict each other.
        known = answers.setdefault(hash(_plain(given)), _plain(answer))
        if known != _plain(answer):
            part.contradicting.add(_place(dataset, at, part.name))


def _find_overlap(examples: Examples, found: Inspection) -> None:
    assert examples.eval is not None
    rows, inputs = set[int](), set[int]()
    for given, answer in _rows(examples.train):
        rows.add(hash((given, answer)))
        inputs.add(hash(_plain(given)))
    for at, (given, answer) in enumerate(_rows(examples.eval)):
        if hash((given, answer)) in rows:
            found.overlap.add(_place(examples.eval, at, "evaluation"))
        elif hash(_plain(given)) in inputs:
            found.similar.add(_place(examples.eval, at, "evaluation"))


@contextlib.contextmanager
def _collected_notes() -> Iterator[list[str]]:
    """Collect balora's log messages instead of showing them."""
    notes: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            notes.append(record.getMessage())

    logger, handler = logging.getLogger("balora"), Collect(logging.WARNING)
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield notes
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


def quantiles(lengths: Sequence[int]) -> dict[str, int]:
    """Return the median, the 90th and 99th percentile and the largest of some lengths.

    Example:
        >>> quantiles(list(range(1, 101)))
        {'median': 50, '90 %': 90, '99 %': 99, 'longest': 100}
    """
    ordered = sorted(lengths)
    at = {"median": 0.5, "90 %": 0.9, "99 %": 0.99, "longest": 1.0}
    return {name: ordered[max(0, -(-int(share * 100 * len(ordered)) // 100) - 1)] for name, share in at.items()}


def histogram(lengths: Sequence[int], bins: int = 10) -> list[tuple[int, int, int]]:
    """Count lengths in bins of one width; return each bin's first and last length and its count.

    Example:
        >>> histogram([1, 2, 3, 9, 10], bins=3)
        [(1, 4, 3), (5, 8, 0), (9, 12, 2)]
    """
    low, high = min(lengths), max(lengths)
    width = max(1, -(-(high - low + 1) // bins))
    counts = Counter((length - low) // width for length in lengths)
    number = (high - low) // width + 1
    return [(low + n * width, low + (n + 1) * width - 1, counts[n]) for n in range(number)]
