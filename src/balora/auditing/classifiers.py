"""Classifiers: drift of the class probabilities, collapse onto few classes or features, and noisy training rows.

Shapes: N rows, C classes, d size of the pooled features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax
from sklearn.metrics import silhouette_score

from balora.anchoring.rows import Row
from balora.auditing.documents import Rows
from balora.auditing.intervals import Bootstrap, Interval, jackknife_interval, percentile_interval, split_groups
from balora.auditing.measure import Found, Measure
from balora.auditing.model_pair import SideName
from balora.auditing.noise import BINS, expected_calibration_error, row_findings
from balora.auditing.token_pass import batches
from balora.evaluation.model_under_test import LoadedModel
from balora.models.classifier_head import padding_side, pooled_features

Array = NDArray[Any]


class Classifier:
    """Class probabilities and pooled features of both models on labelled rows.

    Args:
        folder: Folder for the outputs.
        rows: Returns the rows.
        training: Whether they are the training rows: then noise is measured, else drift and collapse.
        batch_size: Rows in a batch.
        seed: Seed of the resamples.
        apart: Why the two models' class probabilities cannot be compared; None if they can. Then the tuned model's are
            measured alone, and the features of both.
    """

    def __init__(
        self,
        folder: Path,
        rows: Callable[[], Rows],
        *,
        training: bool,
        batch_size: int,
        seed: int,
        apart: str | None = None,
    ) -> None:
        self.name = "noise" if training else "drift"
        self.folder, self._rows, self.training = folder, rows, training
        self.batch_size, self.seed, self.apart = batch_size, seed, apart
        self.classes: tuple[str, ...] = ()

    def run_base(self, loaded: LoadedModel) -> None:
        """See `Part`."""
        self._run(loaded, "base")

    def run_tuned(self, loaded: LoadedModel) -> None:
        """See `Part`."""
        self.classes = tuple(loaded.labels or ())
        self._decode = lambda ids: str(loaded.tokenizer.decode(ids, skip_special_tokens=True))
        self._run(loaded, "tuned")

    def result(self) -> Found:
        """See `Part`."""
        data = self._rows()
        labels = np.asarray([row["labels"] for row in data.rows])
        sides = {side: dict(np.load(self.folder / f"{side}.npz")) for side in ("base", "tuned")}
        base = None if self.apart is not None else sides["base"]["logits"]
        tuned = sides["tuned"]["logits"]
        if self.training:
            found = classifier_noise(base, tuned, labels, data, self.seed)
            for item in found.evidence.get("rows", ()):
                item["prompt"] = self._decode(list(data.rows[item["row"]]["input_ids"]))[:400]
                item["response"] = self.classes[int(labels[item["row"]])] if self.classes else str(labels[item["row"]])
        else:
            found = classifier_drift(base, tuned, labels, self.classes, self.seed)
            found.measures.append(_silhouette_measure({s: v["features"] for s, v in sides.items()}, labels))
        if self.apart is not None:
            found.not_measured["noise: suspicious rows" if self.training else "drift"] = self.apart
        found.notes.append(f"{self.name}: {len(labels):,} rows of {data.source}.")
        return found

    def _run(self, loaded: LoadedModel, side: SideName) -> None:
        rows: list[Row] = self._rows().rows  # type: ignore[assignment]
        order: list[int] = []
        logits, features = [], []
        for batch in batches(rows, self.batch_size):
            texts = [{k: v for k, v in rows[i].items() if k != "labels"} for i in batch]
            inputs: Any = loaded.tokenizer.pad(texts, padding_side=padding_side(loaded.model), return_tensors="pt")
            inputs = inputs.to(loaded.device)
            with pooled_features(loaded.model, inputs) as recorded:
                logits.append(loaded.model(**inputs).logits.float().cpu().numpy())
            features.append(recorded[0].float().cpu().numpy())
            order += batch
        back = np.argsort(order)
        self.folder.mkdir(parents=True, exist_ok=True)
        np.savez(
            self.folder / f"{side}.npz", logits=np.concatenate(logits)[back], features=np.concatenate(features)[back]
        )


def classifier_drift(
    base_NC: Array | None, tuned_NC: Array, labels_N: Array, classes: tuple[str, ...], seed: int
) -> Found:
    """Compare the class probabilities and the predicted classes of two classifiers.

    If ``base_NC`` is None, the base has no such classes. Then the tuned model's predicted classes are compared with the labels.
    """
    log_q = log_softmax(tuned_NC.astype(float), -1)
    predicted = {"tuned": tuned_NC.argmax(-1)}
    entropy = {"tuned": -(np.exp(log_q) * log_q).sum(-1)}
    count = len(labels_N)
    bootstrap = Bootstrap(count, seed)
    found = Found()
    if base_NC is not None:
        log_p = log_softmax(base_NC.astype(float), -1)
        p = np.exp(log_p)
        predicted["base"], entropy["base"] = base_NC.argmax(-1), -(p * log_p).sum(-1)
        found.measures = [
            Measure(name="drift", label="KL(base ‖ tuned) of the class probabilities", unit="nats", count=count, of="rows",
                    value=bootstrap.mean((p * (log_p - log_q)).sum(-1))),
            Measure(name="drift.changed_tokens", label="rows whose predicted class changed", unit="share", count=count, of="rows",
                    value=bootstrap.mean(predicted["base"] != predicted["tuned"])),
        ]  # fmt: skip
    found.measures.append(
        Measure(
            name="collapse.entropy", label="entropy of the class probabilities", unit="nats", count=count, of="rows",
            **_both(bootstrap, entropy),
        )
    )  # fmt: skip
    for number, name in enumerate(classes or tuple(str(i) for i in range(tuned_NC.shape[1]))):
        hits = {side: (values == number).astype(float) for side, values in predicted.items()}
        own = labels_N == number
        if base_NC is None:
            label = f"rows predicted as {name}; value: less those that are {name}"
            values = {"tuned": bootstrap.mean(hits["tuned"]), "value": bootstrap.mean(hits["tuned"] - own)}
        else:
            label, values = f"rows predicted as {name} ({own.mean():.1%} are)", _both(bootstrap, hits)
        found.measures.append(
            Measure(name=f"collapse.predicted.{name}", label=label, unit="share", count=count, of="rows", **values)
        )
        if own.any():
            again = Bootstrap(int(own.sum()), seed)
            found.measures.append(Measure(
                name=f"collapse.recall.{name}", label=f"recall of {name}", unit="share", count=int(own.sum()), of="rows",
                **_both(again, {side: values[own] for side, values in hits.items()}),
            ))  # fmt: skip
    found.not_measured["perplexity and samples"] = "a classifier predicts no text"
    return found


def _both(bootstrap: Bootstrap, values: Mapping[str, Array]) -> dict[str, Any]:
    """Return the means of both models and of their difference, or that of the tuned model alone."""
    sides = {side: bootstrap.mean(column) for side, column in values.items()}
    return sides if "base" not in values else {**sides, "change": bootstrap.mean(values["tuned"] - values["base"])}


def classifier_noise(base_NC: Array | None, tuned_NC: Array, labels_N: Array, data: Rows, seed: int) -> Found:
    """Rank the training rows of a classifier, and measure its calibration on them; without the base's logits only the latter."""
    given = {"tuned": tuned_NC} if base_NC is None else {"base": base_NC, "tuned": tuned_NC}
    sides = {side: log_softmax(logits.astype(float), -1) for side, logits in given.items()}
    index, count = np.arange(len(labels_N)), len(labels_N)
    losses = {side: -log_p[index, labels_N] for side, log_p in sides.items()}
    bootstrap = Bootstrap(count, seed)
    if base_NC is not None:
        found = row_findings(losses["base"], losses["tuned"], np.ones(count, dtype=bool), data, seed)
    else:
        loss = bootstrap.mean(losses["tuned"])
        label = "loss on the training rows, mean over rows"
        found = Found([Measure(name="noise.loss", label=label, unit="nats", count=count, of="rows", tuned=loss)])
    values, again = {}, {}
    for side, log_p in sides.items():
        confidence, hit = np.exp(log_p.max(-1)), (log_p.argmax(-1) == labels_N).astype(float)
        cells = np.eye(BINS)[np.minimum((confidence * BINS).astype(int), BINS - 1)]
        columns = [cells * column[:, None] for column in (hit, confidence, np.ones_like(hit))]
        values[side] = float(expected_calibration_error(*(column.sum(0) for column in columns)))
        again[side] = expected_calibration_error(*(bootstrap.counts_RD @ column for column in columns))
    errors: dict[str, Any] = {side: percentile_interval(values[side], again[side]) for side in sides}
    if base_NC is not None:
        errors["change"] = percentile_interval(values["tuned"] - values["base"], again["tuned"] - again["base"])
    found.measures.append(
        Measure(
            name="noise.ece", label="expected calibration error on the training rows", count=count, of="rows", **errors
        )
    )
    return found


def silhouette(features_Nd: Array, labels_N: Array) -> float:
    """Return the mean silhouette with cosine distance, in [-1, 1]; NaN unless 2 … N - 1 classes occur."""
    if not 2 <= len(np.unique(labels_N)) < len(labels_N):
        return float("nan")
    return float(silhouette_score(features_Nd, labels_N, metric="cosine"))


def _silhouette_measure(features: dict[str, Array], labels_N: Array) -> Measure:
    value = {side: silhouette(x, labels_N) for side, x in features.items()}
    left: dict[str, list[float]] = {"base": [], "tuned": []}
    for group in split_groups(len(labels_N)):
        rest = np.setdiff1d(np.arange(len(labels_N)), group)
        for side, x in features.items():
            left[side].append(silhouette(x[rest], labels_N[rest]))
    same = np.array_equal(features["base"], features["tuned"])
    changes = [a - b for a, b in zip(left["tuned"], left["base"], strict=True)]
    return Measure(
        name="collapse.silhouette", label="silhouette of the pooled features by class (cosine)", count=len(labels_N), of="rows",
        base=jackknife_interval(value["base"], left["base"]), tuned=jackknife_interval(value["tuned"], left["tuned"]),
        change=Interval(0.0, 0.0, 0.0) if same else jackknife_interval(value["tuned"] - value["base"], changes),
    )  # fmt: skip
