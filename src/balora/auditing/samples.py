"""Text that the models write themselves: samples for drift and collapse, and greedy continuations side by side."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from balora.anchoring.rows import Row
from balora.anchoring.sampling import sample_sequences
from balora.auditing.intervals import Bootstrap, Interval, jackknife_interval
from balora.auditing.measure import Found, Measure
from balora.auditing.model_pair import SideName
from balora.evaluation.engines.transformers import pad
from balora.evaluation.model_under_test import LoadedModel
from balora.models.adapted_model import base_model_of

SHOWN = 6
_START, _CONTINUATION = 32, 32


class Samples:
    """Sequences that each model writes at temperature 1, with the same random numbers.

    Args:
        folder: Folder for the sequences.
        count: Sequences of each model.
        tokens: Greatest length.
        seed: Seed of the sampling.
    """

    name = "samples"

    def __init__(self, folder: Path, count: int, tokens: int, seed: int) -> None:
        self.folder, self.count, self.tokens, self.seed = folder, count, tokens, seed

    def run_base(self, loaded: LoadedModel) -> None:
        """See `Part`."""
        self._run(loaded, "base")

    def run_tuned(self, loaded: LoadedModel) -> None:
        """See `Part`."""
        self._run(loaded, "tuned")

    def exist(self) -> bool:
        """Return whether the sequences of the base are on disk."""
        return (self.folder / "base.json").is_file()

    def rows(self) -> list[dict[str, Any]]:
        """Return the base's sequences as rows of tokens."""
        return [
            {"input_ids": row["input_ids"], "labels": row["labels"]}
            for row in self._read("base")
            if any(label >= 0 for label in row["labels"][1:])
        ]

    def result(self) -> Found:
        """See `Part`."""
        base, tuned = self._read("base"), self._read("tuned")
        answers = {side: [_written(row) for row in rows] for side, rows in (("base", base), ("tuned", tuned))}
        found = Found(sample_measures(answers["base"], answers["tuned"], self.seed))
        found.evidence["samples"] = [
            {"opening": b["opening"], "base": b["text"], "tuned": t["text"]}
            for b, t in list(zip(base, tuned, strict=True))[-SHOWN:]
        ]
        found.notes.append(
            f"samples: {len(base):,} sequences of up to {self.tokens} tokens of each model, at temperature 1 with the same seed."
        )
        return found

    def _run(self, loaded: LoadedModel, side: SideName) -> None:
        rows = sample_sequences(loaded.model, loaded.tokenizer, self.count, self.tokens, self.seed)
        decode = functools.partial(loaded.tokenizer.decode, skip_special_tokens=True)
        kept = []
        for row in rows:
            first = next((at for at, label in enumerate(row["labels"]) if label >= 0), len(row["labels"]))
            kept.append({**row, "opening": decode(row["input_ids"][:first]), "text": decode(row["input_ids"][first:])})
        _write(self.folder, side, kept)

    def _read(self, side: str) -> list[dict[str, Any]]:
        return json.loads((self.folder / f"{side}.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


class Continuations:
    """Greedy continuations of the beginnings of some documents by both models."""

    name = "continuations"

    def __init__(self, folder: Path, rows: Callable[[], Sequence[Row]]) -> None:
        self.folder, self._rows = folder, rows

    def run_base(self, loaded: LoadedModel) -> None:
        """See `Part`."""
        _write(self.folder, "base", self._continue(loaded))

    def run_tuned(self, loaded: LoadedModel) -> None:
        """See `Part`."""
        _write(self.folder, "tuned", self._continue(loaded))

    def result(self) -> Found:
        """See `Part`."""
        base, tuned = (
            json.loads((self.folder / f"{side}.json").read_text(encoding="utf-8")) for side in ("base", "tuned")
        )
        shown = [
            {"opening": b["opening"], "base": b["text"], "tuned": t["text"]} for b, t in zip(base, tuned, strict=True)
        ]
        return Found(evidence={"continuations": shown})

    def _continue(self, loaded: LoadedModel) -> list[dict[str, str]]:
        tokenizer, model = loaded.tokenizer, base_model_of(loaded.model)
        decode = functools.partial(tokenizer.decode, skip_special_tokens=True)
        rows = [list(row["input_ids"]) for row in self._rows()[:SHOWN]]
        starts = [ids[: min(_START, max(len(ids) // 2, 1))] for ids in rows]
        # One batch: the six together take little longer than one of them.
        inputs_BT, mask_BT = pad(starts, int(tokenizer.pad_token_id or 0), loaded.device)
        written_BT = model.generate(
            inputs_BT, attention_mask=mask_BT, do_sample=False, num_beams=1, max_new_tokens=_CONTINUATION,
            pad_token_id=tokenizer.pad_token_id or 0, temperature=None, top_p=None, top_k=None,
        )  # fmt: skip
        width = inputs_BT.shape[1]
        return [
            {"opening": decode(start), "text": decode(ids[width:])}
            for start, ids in zip(starts, written_BT.tolist(), strict=True)
        ]


def sample_measures(base: Sequence[list[int]], tuned: Sequence[list[int]], seed: int) -> list[Measure]:
    """Return length and distinct-1/2 of the sequences of two models, pair by pair.

    Distinct-n is the share of different n-grams among all n-grams of all sequences. It falls with the length, so each pair of
    sequences is cut to the shorter of the two.
    """
    count = len(base)
    bootstrap = Bootstrap(count, seed)
    lengths = {"base": [len(ids) for ids in base], "tuned": [len(ids) for ids in tuned]}
    difference = np.subtract(lengths["tuned"], lengths["base"])
    found = [
        Measure(
            name="collapse.length", label="length of a sampled answer", unit="tokens", count=count, of="answers",
            base=bootstrap.mean(lengths["base"]), tuned=bootstrap.mean(lengths["tuned"]), change=bootstrap.mean(difference),
        )
    ]  # fmt: skip
    cut = [min(len(a), len(b)) for a, b in zip(base, tuned, strict=True)]
    for n in (1, 2):
        sides = {
            "base": [ids[:most] for ids, most in zip(base, cut, strict=True)],
            "tuned": [ids[:most] for ids, most in zip(tuned, cut, strict=True)],
        }
        values = {side: distinct(rows, n) for side, rows in sides.items()}
        left = {side: distinct_left_out(rows, n) for side, rows in sides.items()}
        same = sides["base"] == sides["tuned"]
        change = values["tuned"] - values["base"]
        changes = [a - b for a, b in zip(left["tuned"], left["base"], strict=True)]
        found.append(
            Measure(
                name=f"collapse.distinct_{n}", label=f"distinct-{n} of the sampled answers", unit="share", count=count,
                of="answers",
                base=jackknife_interval(values["base"], left["base"]),
                tuned=jackknife_interval(values["tuned"], left["tuned"]),
                change=Interval(0.0, 0.0, 0.0) if same else jackknife_interval(change, changes),
            )
        )  # fmt: skip
    return found


def distinct(rows: Sequence[Sequence[int]], n: int) -> float:
    """Return the share of different n-grams.

    Example:
        >>> distinct([[1, 2, 1], [1, 2]], 1), distinct([[1, 2, 1], [1, 2]], 2)
        (0.4, 0.6666666666666666)
    """
    grams = [gram for row in rows for gram in _grams(row, n)]
    return len(set(grams)) / len(grams) if grams else float("nan")


def distinct_left_out(rows: Sequence[Sequence[int]], n: int) -> list[float]:
    """Return `distinct` of all sequences but one, for each of them."""
    own = [_grams(row, n) for row in rows]
    holders: Counter[tuple[int, ...]] = Counter(gram for grams in own for gram in set(grams))
    total = sum(map(len, own))
    values = []
    for grams in own:
        lost = sum(holders[gram] == 1 for gram in set(grams))
        rest = total - len(grams)
        values.append((len(holders) - lost) / rest if rest else float("nan"))
    return values


def _grams(row: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(row[at : at + n]) for at in range(len(row) - n + 1)]


def _written(row: dict[str, Any]) -> list[int]:
    return [label for label in row["labels"] if label >= 0]


def _write(folder: Path, side: str, rows: list[Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{side}.json").write_text(json.dumps(rows), encoding="utf-8")
