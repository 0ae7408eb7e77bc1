"""Features and predictions of a trained classifier on its evaluation rows, and scores of how well the classes are separated.

Shapes: N rows, D classes, d hidden size.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.manifold import TSNE
from sklearn.metrics import accuracy_score, recall_score, roc_auc_score, silhouette_score
from torch import Tensor

from balora.data.examples import load_examples
from balora.errors import BALoraError
from balora.evaluation.engines.predictors import ClassifierPredictor
from balora.evaluation.model_under_test import ModelUnderTest

PERPLEXITY, ITERATIONS, SEED = 30, 1000, 42
"""Settings of t-SNE, as in the paper (appendix B)."""
_BATCH = 50


@dataclasses.dataclass(frozen=True, kw_only=True)
class Features:
    """Features, logits and labels of a run's evaluation rows."""

    features_Nd: Tensor
    """float16: the first token of the last hidden layer."""
    logits_ND: Tensor
    labels_N: Tensor
    """Index of each row's true class."""
    classes: tuple[str, ...]

    def scores(self) -> dict[str, float]:
        """Measure how well the classes are separated and predicted.

        Returns:
            ``silhouette`` of the features with the true classes as clusters (cosine distance, in [-1, 1]), ``accuracy``, and for
            each class ``recall_CLASS`` and ``auc_CLASS``: the share of pairs of a row of the class and a row of another in which
            the first has the higher probability of the class. It separates classes even if they are never predicted. NaN
            where a score is undefined.
        """
        labels_N, predicted_N = self.labels_N.numpy(), self.logits_ND.argmax(-1).numpy()
        features_Nd, probabilities_ND = self.features_Nd.float().numpy(), self.logits_ND.float().softmax(-1).numpy()
        indices = range(len(self.classes))
        recalls = recall_score(labels_N, predicted_N, labels=list(indices), average=None, zero_division=np.nan)
        counts = [int((labels_N == n).sum()) for n in indices]
        aucs = [
            roc_auc_score(labels_N == n, probabilities_ND[:, n]) if 0 < counts[n] < len(labels_N) else np.nan
            for n in indices
        ]
        is_defined = 1 < len(np.unique(labels_N)) < len(labels_N)
        silhouette = silhouette_score(features_Nd, labels_N, metric="cosine") if is_defined else np.nan
        return {
            "silhouette": float(silhouette),
            "accuracy": float(accuracy_score(labels_N, predicted_N)),
            **{f"recall_{name}": float(recall) for name, recall in zip(self.classes, recalls, strict=True)},
            **{f"auc_{name}": float(auc) for name, auc in zip(self.classes, aucs, strict=True)},
        }

    def map(self) -> np.ndarray:
        """Return the features in two dimensions (N × 2), by t-SNE.

        The perplexity is 30 as in the paper; with fewer than 91 rows it is (N - 1) / 3.

        Reference: van der Maaten & Hinton, Visualizing data using t-SNE, 2008.
        """
        perplexity = min(PERPLEXITY, (len(self.labels_N) - 1) / 3)
        tsne = TSNE(n_components=2, perplexity=perplexity, max_iter=ITERATIONS, random_state=SEED)
        return np.asarray(tsne.fit_transform(self.features_Nd.float().numpy()))


def load_or_extract(run: Path, path: Path) -> Features:
    """Return a run's features, from a file if it was made from the same weights, else from the run's model.

    Args:
        run: Directory of a finished classification run with evaluation rows.
        path: File to read, or to write after the features were extracted.

    Raises:
        BALoraError: The run cannot be loaded, is not a classification run, or has no evaluation rows.
    """
    subject = ModelUnderTest(str(run))
    weights = str(subject.identity["weights"])
    features = _read(path, weights)
    if features is None:
        features = _extract(subject)
        _write(features, path, weights)
    return features


def _extract(subject: ModelUnderTest) -> Features:
    config = subject.settings
    assert config is not None
    examples = load_examples(config.data, config.task, config.seed)
    if examples.eval is None or examples.label_names is None:
        raise BALoraError(
            f"{subject.name} has no evaluation rows with classes, so no features can be extracted from it."
        )
    texts: Sequence[Sequence[str]] = [
        [row[name] for name in ("text", "text_pair") if row.get(name) is not None] for row in examples.eval
    ]
    predictor = ClassifierPredictor(subject.load(None), config, _BATCH)
    rows = sorted(predictor.represent(texts), key=lambda row: row[0])  # the predictor sorts rows by length
    return Features(
        features_Nd=torch.stack([features for _, _, features in rows]).half(),
        logits_ND=torch.tensor([logits for _, logits, _ in rows]),
        labels_N=torch.tensor(examples.eval["labels"]),
        classes=examples.label_names,
    )


def _write(features: Features, path: Path, weights: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.tmp")
    tensors = {"features": features.features_Nd, "logits": features.logits_ND, "truth": features.labels_N}
    save_file(tensors, scratch, metadata={"weights": weights, "classes": json.dumps(features.classes)})
    scratch.replace(path)


def _read(path: Path, weights: str) -> Features | None:
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        if metadata["weights"] != weights:
            return None
        return Features(
            features_Nd=file.get_tensor("features"),
            logits_ND=file.get_tensor("logits"),
            labels_N=file.get_tensor("truth"),
            classes=tuple(json.loads(metadata["classes"])),
        )
