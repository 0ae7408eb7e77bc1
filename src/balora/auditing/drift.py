"""Drift: how far the tuned model's predictions are from the base's on text that is not the task's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from balora.anchoring.rows import Row
from balora.auditing.intervals import Bootstrap, Interval, jackknife_interval, split_groups
from balora.auditing.measure import Found, Measure
from balora.auditing.model_pair import ModelPair
from balora.auditing.token_pass import Table, TokenPass
from balora.evaluation.model_under_test import LoadedModel

SHOWN_DOCUMENTS = 6
SHOWN_TOKENS = 20


class Drift:
    """Divergence on documents, and the entropy and effective rank there.

    Args:
        name: ``drift``, or another name for further documents.
        tokens: The forward over the documents.
        rows: Returns the documents as tokens.
        about: The documents in a few words.
        seed: Seed of the resamples.
    """

    def __init__(self, name: str, tokens: TokenPass, rows: Callable[[], Sequence[Row]], about: str, seed: int) -> None:
        self.name, self.tokens, self._rows, self.about, self.seed = name, tokens, rows, about, seed
        self.measure_name = name
        self._decode: Callable[[list[int]], str] = str
        self._raw: Callable[[int], str] = str

    def _prepare(self, loaded: LoadedModel) -> None:
        tokenizer = loaded.target_tokenizer or loaded.tokenizer
        self._decode = lambda ids: str(tokenizer.decode(ids))
        self._raw = lambda token: str(tokenizer.convert_ids_to_tokens(token))

    def run_base(self, loaded: LoadedModel) -> None:
        """See `Part`."""
        self.tokens.run(loaded, "base")

    def run_tuned(self, loaded: LoadedModel) -> None:
        """See `Part`."""
        self._prepare(loaded)
        self.tokens.run(loaded, "tuned")

    def run_both(self, pair: ModelPair) -> None:
        """Run both models at once; they must be two states of one set of weights."""
        with pair.side("tuned") as loaded:
            self._prepare(loaded)
        self.tokens.run_both(pair)

    def result(self) -> Found:
        """See `Part`."""
        base, tuned = self.tokens.tables()
        rows = self._rows()
        found = Found(drift_measures(base, tuned, len(rows), self.measure_name, self.seed))
        found.notes.append(
            f"{self.measure_name}: {len(rows):,} documents with {len(base['nll']):,} predicted tokens ({self.about})."
        )
        found.evidence["drift" if self.measure_name == "drift" else "samples_drift"] = {
            "about": self.about,
            **self._evidence(base, tuned, rows),
        }
        if "hidden" in base and "hidden" in tuned:
            found.measures.append(_rank_measure(base, tuned, self.measure_name))
        else:
            found.not_measured[f"{self.measure_name}: effective rank"] = (
                "the head is not a known linear map of the hidden states"
            )
        return found

    def _evidence(self, base: Table, tuned: Table, rows: Sequence[Row]) -> dict[str, Any]:
        kl, row = tuned["kl"], base["row"]
        sums, counts = np.bincount(row, kl, len(rows)), np.bincount(row, minlength=len(rows))
        means = sums / np.maximum(counts, 1)
        documents = []
        for number in np.argsort(-means, kind="stable")[:SHOWN_DOCUMENTS]:
            own = np.flatnonzero(row == number)
            own = own[np.argsort(base["token"][own], kind="stable")]
            documents.append(
                {
                    "document": int(number),
                    "kl": float(means[number]),
                    "tokens": self._coloured(base, tuned, own, rows[number]),
                }
            )
        order = np.argsort(-kl, kind="stable")[:SHOWN_TOKENS]
        return {
            "documents": documents,
            "tokens": [self._token(base, tuned, int(at), rows[int(row[at])]) for at in order],
            "quantiles": [[q, float(np.quantile(kl, q))] for q in (0.5, 0.75, 0.9, 0.95, 0.99, 1.0)] if len(kl) else [],
        }

    def _piece(self, token: int) -> str:
        """Return a token as it stands in a text: decoded alone, SentencePiece's tokens lose the space before them."""
        text = self._decode([token])
        return f" {text}" if self._raw(token).startswith("\u2581") and not text.startswith(" ") else text

    def _coloured(self, base: Table, tuned: Table, own: NDArray[Any], row: Row) -> list[dict[str, Any]]:
        """Return the text of a document as pieces with the divergence at each."""
        known = {int(base["token"][at]): int(at) for at in own}
        labels = row["input_ids"] if self.tokens.causal else row["labels"]
        pieces = []
        for position, token in enumerate(labels[:200]):
            piece: dict[str, Any] = {"text": self._piece(token) if token >= 0 else ""}
            if position in known:
                at = known[position]
                piece["kl"] = round(float(tuned["kl"][at]), 5)
                if base["likeliest"][at] != tuned["likeliest"][at]:
                    piece["base"] = self._decode([int(base["likeliest"][at])])
                    piece["tuned"] = self._decode([int(tuned["likeliest"][at])])
            pieces.append(piece)
        return pieces

    def _token(self, base: Table, tuned: Table, at: int, row: Row) -> dict[str, Any]:
        labels = list(row["input_ids"] if self.tokens.causal else row["labels"])
        token = int(base["token"][at])
        return {
            "before": self._decode([t for t in labels[max(token - 12, 0) : token] if t >= 0]),
            "token": self._decode([int(base["label"][at])]),
            "base": self._decode([int(base["likeliest"][at])]),
            "tuned": self._decode([int(tuned["likeliest"][at])]),
            "kl": float(tuned["kl"][at]),
        }


def drift_measures(base: Table, tuned: Table, documents: int, name: str, seed: int) -> list[Measure]:
    """Return the measures of drift from the statistics of both models at the same tokens."""
    row = base["row"]
    counts = np.bincount(row, minlength=documents).astype(float)

    def sums(values: Any) -> NDArray[np.float64]:
        return np.bincount(row, np.asarray(values, dtype=float), documents).astype(float)

    use = counts > 0
    count = int(use.sum())
    number = np.cumsum(use) - 1
    bootstrap = Bootstrap(count, seed)
    counts_D = counts[use]
    kl_D, changed_D = sums(tuned["kl"])[use], sums(base["likeliest"] != tuned["likeliest"])[use]
    nll_D = {"base": sums(base["nll"])[use], "tuned": sums(tuned["nll"])[use]}
    entropy_D = {"base": sums(base["entropy"])[use], "tuned": sums(tuned["entropy"])[use]}
    prefix = "collapse" if name == "drift" else f"{name}.collapse"

    def perplexity(nll: Any, tokens: Any) -> Any:
        return np.exp(nll / tokens)

    def difference(after: Any, before: Any, tokens: Any) -> Any:
        return np.exp(after / tokens) - np.exp(before / tokens)

    return [
        Measure(name=name, label="KL(base ‖ tuned) per token", unit="nats", count=count, value=bootstrap.ratio(kl_D, counts_D)),
        Measure(
            name=f"{name}.p95", label="KL(base ‖ tuned), 95th percentile over tokens", unit="nats", count=count,
            value=bootstrap.quantile(tuned["kl"], number[row], 0.95),
        ),
        Measure(
            name=f"{name}.changed_tokens", label="tokens whose likeliest continuation changed", unit="share", count=count,
            value=bootstrap.ratio(changed_D, counts_D),
        ),
        Measure(
            name=f"{name}.perplexity", label="perplexity", count=count,
            base=bootstrap.of(perplexity, nll_D["base"], counts_D), tuned=bootstrap.of(perplexity, nll_D["tuned"], counts_D),
            change=bootstrap.of(difference, nll_D["tuned"], nll_D["base"], counts_D),
        ),
        Measure(
            name=f"{prefix}.entropy", label="entropy of the next token", unit="nats", count=count,
            base=bootstrap.ratio(entropy_D["base"], counts_D), tuned=bootstrap.ratio(entropy_D["tuned"], counts_D),
            change=bootstrap.ratio(entropy_D["tuned"] - entropy_D["base"], counts_D),
        ),
    ]  # fmt: skip


def effective_rank(hidden_SD: NDArray[Any]) -> float:
    """Return exp(H(σ / Σσ)) of a matrix: the number of directions that it uses, between 1 and its smaller side.

    Example:
        >>> round(effective_rank(np.eye(3)), 6)
        3.0
    """
    wide = np.asarray(hidden_SD, dtype=np.float64)
    if not wide.size or not np.isfinite(wide).all():
        return math.nan
    gram = wide @ wide.T if wide.shape[0] < wide.shape[1] else wide.T @ wide
    values = np.sqrt(np.clip(np.linalg.eigvalsh(gram), 0.0, None))
    return entropy_rank(values)


def entropy_rank(values: NDArray[Any]) -> float:
    """Return exp of the entropy of singular values divided by their sum; 0 for a matrix of zeros."""
    total = float(values.sum())
    if total <= 0:
        return 0.0
    share = values[values > 0] / total
    return float(np.exp(-(share * np.log(share)).sum()))


def _rank_measure(base: Table, tuned: Table, name: str) -> Measure:
    """Compare the effective ranks of the last hidden states at the sampled tokens; intervals leave out groups of documents."""
    documents = np.unique(base["hidden_row"])
    groups = [set(documents[group].tolist()) for group in split_groups(len(documents), 10)]
    sides = {"base": base["hidden"], "tuned": tuned["hidden"]}
    value = {side: effective_rank(hidden) for side, hidden in sides.items()}
    left: dict[str, list[float]] = {"base": [], "tuned": []}
    for group in groups if len(groups) > 1 else []:
        inside = ~np.isin(base["hidden_row"], list(group))
        for side, hidden in sides.items():
            left[side].append(effective_rank(hidden[inside]))
    same = np.array_equal(base["hidden"], tuned["hidden"])
    change = (
        Interval(0.0, 0.0, 0.0)
        if same
        else jackknife_interval(
            value["tuned"] - value["base"], [a - b for a, b in zip(left["tuned"], left["base"], strict=True)]
        )
    )
    prefix = "collapse" if name == "drift" else f"{name}.collapse"
    return Measure(
        name=f"{prefix}.hidden_rank",
        label=f"effective rank of the last hidden states at {len(base['hidden']):,} tokens",
        count=len(documents),
        base=jackknife_interval(value["base"], left["base"]),
        tuned=jackknife_interval(value["tuned"], left["tuned"]),
        change=change,
    )
