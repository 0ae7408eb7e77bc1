"""Noise in the training data: rows that the tuned model fits and the base finds unlikely, calibration, memorised rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from balora.auditing.documents import Rows
from balora.auditing.intervals import Bootstrap, Interval, percentile_interval
from balora.auditing.measure import Found, Measure
from balora.auditing.token_pass import Table, TokenPass
from balora.evaluation.model_under_test import LoadedModel

SHOWN = 20
BINS = 15
LEAST_TOKENS = 8
"""Response tokens from which a row can count as memorised; a shorter one is soon right by chance."""
OUTLIER, LEAST_FALL = 3.5, 0.5
"""A row is suspicious if its fall is above the median by this many robust standard deviations, and by this many nats a token."""
_MAD = 1.4826


class Noise:
    """Losses of both models on the training rows of a language model.

    Args:
        tokens: Forward over the rows.
        rows: Returns the rows with their source.
        seed: Seed of the resamples.
    """

    name = "noise"

    def __init__(self, tokens: TokenPass, rows: Callable[[], Rows], seed: int) -> None:
        self.tokens, self._rows, self.seed = tokens, rows, seed

    def run_base(self, loaded: LoadedModel) -> None:
        """See `Part`."""
        self.tokens.run(loaded, "base")

    def run_tuned(self, loaded: LoadedModel) -> None:
        """See `Part`."""
        tokenizer, target = loaded.tokenizer, loaded.target_tokenizer or loaded.tokenizer
        self._text = lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True))
        self._target_text = lambda ids: str(target.decode(ids, skip_special_tokens=True))
        self.tokens.run(loaded, "tuned")

    def result(self) -> Found:
        """See `Part`."""
        base, tuned = self.tokens.tables()
        data = self._rows()
        count = len(data.rows)
        row, size = base["row"], np.bincount(base["row"], minlength=len(data.rows)).astype(float)
        losses = {
            side: _by_row(table["nll"], row, count) / np.maximum(size, 1)
            for side, table in (("base", base), ("tuned", tuned))
        }
        found = row_findings(losses["base"], losses["tuned"], size > 0, data, self.seed)
        found.measures += _token_measures(base, tuned, count, self.seed)
        found.notes.append(f"noise: {count:,} training rows of {data.source}.")
        for item in found.evidence["rows"]:
            ids = data.rows[item["row"]]
            learnt = [t for t in ids["labels"] if t >= 0]
            prompt = (
                [t for t, label in zip(ids["input_ids"], ids["labels"], strict=False) if label < 0]
                if self.tokens.causal
                else ids["input_ids"]
            )
            item["prompt"], item["response"] = self._text(prompt)[-400:], self._target_text(learnt)[:400]
        return found


def row_findings(base_D: NDArray[Any], tuned_D: NDArray[Any], use_D: NDArray[Any], data: Rows, seed: int) -> Found:
    """Rank rows by the fall of their loss against the median, and count the suspicious ones.

    Args:
        base_D: Loss of each row under the base, nats per token (for classifiers nats).
        tuned_D: The same under the tuned model.
        use_D: Rows that have a loss.
        data: The rows.
        seed: Seed of the resamples.
    """
    fall_D = np.where(use_D, base_D - tuned_D, -np.inf)
    known = fall_D[use_D]
    median = float(np.median(known)) if len(known) else 0.0
    spread = _MAD * float(np.median(np.abs(known - median))) if len(known) else 0.0
    unlikely = base_D > np.median(base_D[use_D]) if len(known) else use_D
    suspicious = use_D & unlikely & (fall_D - median > max(OUTLIER * spread, LEAST_FALL))
    order = np.argsort(-fall_D, kind="stable")
    bootstrap = Bootstrap(int(use_D.sum()), seed)
    measures = [
        Measure(
            name="noise.suspicious", label="suspicious training rows", unit="share", count=int(use_D.sum()), of="rows",
            value=bootstrap.mean(suspicious[use_D].astype(float)),
        ),
        Measure(
            name="noise.loss", label="loss on the training rows, mean over rows", unit="nats", count=int(use_D.sum()), of="rows",
            base=bootstrap.mean(base_D[use_D]), tuned=bootstrap.mean(tuned_D[use_D]),
            change=bootstrap.mean(tuned_D[use_D] - base_D[use_D]),
        ),
    ]  # fmt: skip
    shown = [
        {
            "row": int(i), "fall": float(fall_D[i] - median), "base": float(base_D[i]), "tuned": float(tuned_D[i]),
            "suspicious": bool(suspicious[i]), **({} if data.wrong is None else {"wrong": data.wrong[i]}),
        }
        for i in order[:SHOWN] if use_D[i]
    ]  # fmt: skip
    found = Found(measures, {"rows": shown})
    if data.wrong is not None:
        found.measures += _precision_and_recall(np.asarray(data.wrong), order, suspicious, bootstrap, use_D)
    return found


def expected_calibration_error(hits: Any, confidence: Any, count: Any) -> Any:
    """Return Σ |hits − confidence| / Σ count over bins (last dimension): the mean gap of confidence and accuracy."""
    return np.abs(hits - confidence).sum(-1) / count.sum(-1)


def _precision_and_recall(
    wrong_D: NDArray[Any], order: NDArray[Any], suspicious: NDArray[Any], bootstrap: Bootstrap, use_D: NDArray[Any]
) -> list[Measure]:
    """Score the list of suspicious rows against the labels that ``data.label_noise`` changed."""
    caught = (wrong_D & suspicious).astype(float)[use_D]
    total = int(wrong_D.sum())
    top = float(wrong_D[order[:total]].mean()) if total else None
    measures = []
    for name, label, against in (
        ("precision", "suspicious rows whose label is known to be wrong", suspicious.astype(float)[use_D]),
        ("recall", "rows with a label known to be wrong that are suspicious", wrong_D.astype(float)[use_D]),
    ):
        if against.sum():
            measures.append(
                Measure(
                    name=f"noise.{name}",
                    label=label,
                    unit="share",
                    count=len(caught),
                    of="rows",
                    value=bootstrap.ratio(caught, against),
                )
            )
    if top is not None:
        measures.append(
            Measure(
                name="noise.precision_of_list", label="wrong labels among the first rows of the list, as many as there are",
                unit="share", count=total, of="rows", value=Interval(top),
            )
        )  # fmt: skip
    return measures


def _token_measures(base: Table, tuned: Table, rows: int, seed: int) -> list[Measure]:
    row = base["row"]
    size = np.bincount(row, minlength=rows)
    use = size > 0
    bootstrap = Bootstrap(int(use.sum()), seed)
    measures = [_calibration(base, tuned, rows, use, bootstrap)]
    long = size >= LEAST_TOKENS
    if long.any():
        every = {
            side: _by_row(table["hit"], row, rows)[long] == size[long]
            for side, table in (("base", base), ("tuned", tuned))
        }
        again = Bootstrap(int(long.sum()), seed)
        measures.append(
            Measure(
                name="noise.memorised", label=f"rows of {LEAST_TOKENS} tokens or more whose every token is the likeliest",
                unit="share", count=int(long.sum()), of="rows", base=again.mean(every["base"]), tuned=again.mean(every["tuned"]),
                change=again.mean(every["tuned"].astype(float) - every["base"]),
            )
        )  # fmt: skip
    return measures


def _calibration(base: Table, tuned: Table, rows: int, use: NDArray[Any], bootstrap: Bootstrap) -> Measure:
    """Compare the expected calibration errors of the next token on the training rows."""
    sides: dict[str, tuple[NDArray[Any], ...]] = {}
    for side, table in (("base", base), ("tuned", tuned)):
        bins = np.minimum((table["confidence"] * BINS).astype(int), BINS - 1)
        cell = table["row"].astype(np.int64) * BINS + bins
        sums = [
            np.bincount(cell, np.asarray(values, dtype=float), rows * BINS).reshape(rows, BINS)[use]
            for values in (table["hit"], table["confidence"], np.ones(len(cell)))
        ]
        sides[side] = tuple(sums)
    values = {side: float(expected_calibration_error(*(s.sum(0) for s in sums))) for side, sums in sides.items()}
    counts_RD = bootstrap.counts_RD
    again = {
        side: expected_calibration_error(*(counts_RD @ s for s in sums)) if len(counts_RD) else np.zeros(0)
        for side, sums in sides.items()
    }
    return Measure(
        name="noise.ece", label="expected calibration error of the next token on the training rows",
        count=int(use.sum()), of="rows",
        base=percentile_interval(values["base"], again["base"]), tuned=percentile_interval(values["tuned"], again["tuned"]),
        change=percentile_interval(values["tuned"] - values["base"], again["tuned"] - again["base"]),
    )  # fmt: skip


def _by_row(values: NDArray[Any], row: NDArray[Any], rows: int) -> NDArray[np.float64]:
    return np.bincount(row, np.asarray(values, dtype=float), rows).astype(float)
