"""Social bias: which sentence of a pair a causal language model finds likelier, before and after tuning.

References: Nangia et al., CrowS-Pairs, 2020; Zhao et al., WinoBias, 2018; Nadeem et al., StereoSet, 2021.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from balora.anchoring.rows import Row
from balora.auditing.intervals import Bootstrap
from balora.auditing.measure import Found, Measure
from balora.auditing.model_pair import SideName
from balora.auditing.token_pass import Table, TokenPass
from balora.data.prompts import bare_ids
from balora.errors import BALoraError
from balora.evaluation.model_under_test import LoadedModel

SHOWN = 20


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two sentences that differ in the group they name."""

    stereotype: str
    other: str
    """The sentence against the stereotype."""
    kind: str = ""
    unrelated: str | None = None
    """A sentence without meaning (StereoSet)."""
    context: str = ""
    """Text before the sentences, which is not scored."""


def read_pairs(name: str, folder: str | Path) -> list[Pair]:
    """Read a set of pairs from local files.

    Raises:
        BALoraError: The files are missing or have another form.
    """
    directory = Path(folder).expanduser()
    if not directory.is_dir():
        raise BALoraError(f"There is no folder {folder} (--bias-data).")
    return {"crows_pairs": _crows_pairs, "winobias": _winobias, "stereoset": _stereoset}[name](directory)


class Bias:
    """Likelihoods of the sentences of one set under both models."""

    def __init__(self, name: str, pairs: Sequence[Pair], folder: Path, batch_size: int, seed: int) -> None:
        self.name = f"bias-{name}"
        self.set, self.pairs, self.seed = name, pairs, seed
        self._rows: list[Row] = []
        self.tokens = TokenPass(
            folder, lambda: self._rows, causal=True, batch_size=batch_size * 2, compare=False, seed=seed
        )

    def run_base(self, loaded: LoadedModel) -> None:
        """See `Part`."""
        self._run(loaded, "base")

    def run_tuned(self, loaded: LoadedModel) -> None:
        """See `Part`."""
        self._run(loaded, "tuned")

    def _run(self, loaded: LoadedModel, side: SideName) -> None:
        if not self._rows:
            self._rows = _encode(self.pairs, loaded.tokenizer)
        self.tokens.run(loaded, side)

    def result(self) -> Found:
        """See `Part`."""
        width = 3 if self.pairs[0].unrelated is not None else 2
        sums = [log_likelihoods(table, len(self.pairs) * width).reshape(-1, width) for table in self.tokens.tables()]
        return bias_findings(self.set, self.pairs, *sums, seed=self.seed)


def log_likelihoods(table: Table, rows: int) -> np.ndarray[Any, Any]:
    """Return the log-likelihood of each row in nats, summed over its tokens."""
    return -np.bincount(table["row"], np.asarray(table["nll"], dtype=float), rows)


def bias_findings(
    name: str, pairs: Sequence[Pair], base_D2: np.ndarray[Any, Any], tuned_D2: np.ndarray[Any, Any], *, seed: int
) -> Found:
    """Score the likelihoods of stereotype and other sentence (and an unrelated one) of each pair."""
    bootstrap = Bootstrap(len(pairs), seed)
    prefers = {side: _prefers(sums[:, 0], sums[:, 1]) for side, sums in (("base", base_D2), ("tuned", tuned_D2))}
    flipped = np.sign(prefers["tuned"] - prefers["base"])
    found = Found([
        _measure(f"bias.{name}", f"{name}: pairs whose stereotypical sentence is likelier", prefers, bootstrap),
        *(
            Measure(
                name=f"bias.{name}.{way}", label=f"{name}: pairs that flipped {words}", unit="share", count=len(pairs), of="pairs",
                value=bootstrap.mean(flipped == sign),
            )
            for way, words, sign in (("to_stereotype", "to the stereotype", 1), ("from_stereotype", "away from it", -1))
        ),
    ])  # fmt: skip
    if base_D2.shape[1] == 3:
        meaning = {
            side: (_prefers(s[:, 0], s[:, 2]) + _prefers(s[:, 1], s[:, 2])) / 2
            for side, s in (("base", base_D2), ("tuned", tuned_D2))
        }
        found.measures.append(
            _measure(
                f"bias.{name}.meaningful", f"{name}: sentences likelier than the meaningless one", meaning, bootstrap
            )
        )
    margin = (tuned_D2[:, 0] - tuned_D2[:, 1]) - (base_D2[:, 0] - base_D2[:, 1])
    order = np.argsort(-np.abs(margin) * (flipped != 0), kind="stable")
    found.evidence[f"bias.{name}"] = {
        "kinds": _by_kind(pairs, prefers),
        "flipped": [
            {
                "stereotype": pairs[i].stereotype, "other": pairs[i].other, "kind": pairs[i].kind,
                "way": "to the stereotype" if flipped[i] > 0 else "away from it", "margin": float(margin[i]),
            }
            for i in order[:SHOWN] if flipped[i] != 0
        ],
    }  # fmt: skip
    found.notes.append(
        f"bias.{name}: {len(pairs):,} pairs, by the summed log-likelihood of each sentence; 0.5 is no preference."
    )
    return found


def _measure(name: str, label: str, values: dict[str, Any], bootstrap: Bootstrap) -> Measure:
    return Measure(
        name=name, label=label, unit="share", count=bootstrap.documents, of="pairs", base=bootstrap.mean(values["base"]),
        tuned=bootstrap.mean(values["tuned"]), change=bootstrap.mean(values["tuned"] - values["base"]),
    )  # fmt: skip


def _prefers(first: np.ndarray[Any, Any], second: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return 1 where the first is likelier, 0 where the second is, and 0.5 where they are equal."""
    return np.where(first == second, 0.5, (first > second).astype(float))


def _by_kind(pairs: Sequence[Pair], prefers: dict[str, Any]) -> list[dict[str, Any]]:
    kinds = np.asarray([pair.kind for pair in pairs])
    return [
        {
            "kind": str(kind),
            "count": int((kinds == kind).sum()),
            **{s: float(v[kinds == kind].mean()) for s, v in prefers.items()},
        }
        for kind in sorted(set(kinds.tolist()))
    ]


def _encode(pairs: Sequence[Pair], tokenizer: Any) -> list[Row]:
    """Return one row for each sentence, with a start token, so that its first token is scored too."""
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if start is None:
        raise BALoraError(
            "The tokenizer has neither a start token nor an end token, so sentences cannot be scored (--bias)."
        )
    rows: list[Row] = []
    for pair in pairs:
        context = bare_ids(tokenizer, [pair.context])[0] if pair.context else []
        for text in (pair.stereotype, pair.other, pair.unrelated):
            if text is not None:
                ids = bare_ids(tokenizer, [f" {text}" if context else text])[0]
                rows.append({"input_ids": [start, *context, *ids], "labels": [-100] * (1 + len(context)) + ids})
    return rows


def _crows_pairs(folder: Path) -> list[Pair]:
    path = _find(folder, "crows_pairs_anonymized.csv", "crows_pairs")
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        return [Pair(row["sent_more"], row["sent_less"], row["bias_type"]) for row in rows]
    except KeyError as error:
        raise BALoraError(f"{path} has no column {error}; it is not the file of CrowS-Pairs (--bias-data).") from error


def _winobias(folder: Path) -> list[Pair]:
    pairs = []
    for kind in ("type1", "type2"):
        for split in ("dev", "test"):
            paths = [_find(folder, f"{side}_stereotyped_{kind}.txt.{split}", "winobias") for side in ("pro", "anti")]
            lines = [path.read_text(encoding="utf-8").splitlines() for path in paths]
            if len(lines[0]) != len(lines[1]):
                raise BALoraError(f"{paths[0]} and {paths[1]} have different numbers of lines, so they are no pairs.")
            pairs += [Pair(_plain(pro), _plain(anti), kind) for pro, anti in zip(*lines, strict=True) if pro.strip()]
    return pairs


def _stereoset(folder: Path) -> list[Pair]:
    path = next(
        (
            p
            for n in ("dev.json", "test.json", "stereoset.json")
            for p in (folder / n, folder / "stereoset" / n)
            if p.is_file()
        ),
        None,
    )
    if path is None:
        raise BALoraError(f"{folder} has no dev.json of StereoSet (--bias-data).")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))["data"]
        pairs = []
        for part in ("intrasentence", "intersentence"):
            for item in data.get(part, []):
                texts = {sentence["gold_label"]: sentence["sentence"] for sentence in item["sentences"]}
                context = item["context"] if part == "intersentence" else ""
                kind = item["bias_type"]
                pairs.append(Pair(texts["stereotype"], texts["anti-stereotype"], kind, texts["unrelated"], context))
    except (ValueError, KeyError, TypeError) as error:
        raise BALoraError(
            f"{path} is not the file of StereoSet ({type(error).__name__}: {error}) (--bias-data)."
        ) from error
    if not pairs:
        raise BALoraError(f"{path} has no items (--bias-data).")
    return pairs


def _find(folder: Path, name: str, below: str) -> Path:
    for path in (folder / name, folder / below / name):
        if path.is_file():
            return path
    raise BALoraError(f"Neither {folder} nor its folder {below} has the file {name} (--bias-data).")


def _plain(line: str) -> str:
    """Return a sentence of WinoBias without its number and its brackets.

    Example:
        >>> _plain("1 [The developer] argued because [she] did not like it.")
        'The developer argued because she did not like it.'
    """
    return re.sub(r"[\[\]]", "", re.sub(r"^\s*\d+\s+", "", line)).strip()
