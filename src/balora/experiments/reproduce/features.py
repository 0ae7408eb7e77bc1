"""What a trained classifier makes of its evaluation rows: features, predictions, and how well the classes lie apart.

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

from balora.data import load_examples
from balora.errors import BALoraError
from balora.evaluation.engines.predictors import ClassifierPredictor
from balora.evaluation.model_under_test import ModelUnderTest

PERPLEXITY, ITERATIONS, SEED = 30, 1000, 42
"""Of t-SNE, as in the paper (appendix B)."""
_BATCH = 50


@dataclasses.dataclass(frozen=True, kw_only=True)
class Features:
    """Of one run, on the evaluation rows it was given."""

    features_Nd: Tensor
    """float16: the last hidden layer's first token."""
    logits_ND: Tensor
    truth_N: Tensor
    """Numbers of the true classes."""
    classes: tuple[str, ...]

    def scores(self) -> dict[str, float]:
        """How well the classes lie apart and are told apart.

        Returns:
            ``silhouette`` of the features with the true classes as clusters (cosine distance, in [-1, 1]), ``accuracy``, and for
            each class ``recall_CLASS`` and ``auc_CLASS``: how often a row of it gets a higher probability of it than a row of
            another, which tells classes apart that are never the likeliest. NaN where there is nothing to measure.
        """
        truth_N, found_N = self.truth_N.numpy(), self.logits_ND.argmax(-1).numpy()
        numbers = list(range(len(self.classes)))
        recalls = recall_score(truth_N, found_N, labels=numbers, average=None, zero_division=np.nan)
        measurable = 1 < len(np.unique(truth_N)) < len(truth_N)
        features_Nd = self.features_Nd.float().numpy()
        probabilities_ND = self.logits_ND.float().softmax(-1).numpy()
        areas = [
            float(roc_auc_score(truth_N == n, probabilities_ND[:, n]))
            if 0 < (truth_N == n).sum() < len(truth_N)
            else np.nan
            for n in numbers
        ]
        return {
            "silhouette": float(silhouette_score(features_Nd, truth_N, metric="cosine"))
            if measurable
            else float("nan"),
            "accuracy": float(accuracy_score(truth_N, found_N)),
            **{f"recall_{name}": float(recall) for name, recall in zip(self.classes, recalls, strict=True)},
            **{f"auc_{name}": area for name, area in zip(self.classes, areas, strict=True)},
        }

    def map(self) -> np.ndarray:
        """The features in two dimensions (N × 2), by t-SNE.

        Its perplexity is 30 as in the paper, for fewer than 91 rows a third of the others.

        Reference: van der Maaten & Hinton, Visualizing data using t-SNE, 2008.
        """
        perplexity = min(PERPLEXITY, (len(self.truth_N) - 1) / 3)
        made = TSNE(n_components=2, perplexity=perplexity, max_iter=ITERATIONS, random_state=SEED)
        return np.asarray(made.fit_transform(self.features_Nd.float().numpy()))


def features_of(run: Path, kept: Path) -> Features:
    """A run's features, from the file where they were kept, else from the run's model.

    Args:
        run: The folder of a finished classification run with evaluation rows.
        kept: The file; what it holds is used only if it is of these very weights.

    Raises:
        BALoraError: The run cannot be loaded, is no classifier's, or has no evaluation rows.
    """
    subject = ModelUnderTest(str(run))
    weights = str(subject.identity["weights"])
    found = _read(kept, weights)
    if found is None:
        found = _take(subject)
        _write(found, kept, weights)
    return found


def _take(subject: ModelUnderTest) -> Features:
    settings = subject.settings
    assert settings is not None
    examples = load_examples(settings.data, settings.task, settings.seed)
    if examples.eval is None or examples.label_names is None:
        raise BALoraError(
            f"{subject.name} has no evaluation rows with classes, so there is nothing to take features of."
        )
    texts: Sequence[Sequence[str]] = [
        [row[name] for name in ("text", "text_pair") if row.get(name) is not None] for row in examples.eval
    ]
    predictor = ClassifierPredictor(subject.load(None), settings, _BATCH)
    taken = {number: (features, logits) for number, logits, features in predictor.represent(texts)}
    return Features(
        features_Nd=torch.stack([taken[number][0] for number in range(len(texts))]).half(),
        logits_ND=torch.tensor([taken[number][1] for number in range(len(texts))]),
        truth_N=torch.tensor(examples.eval["labels"]),
        classes=examples.label_names,
    )


def _write(made: Features, path: Path, weights: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    side = path.with_name(f".{path.name}.tmp")
    tensors = {"features": made.features_Nd, "logits": made.logits_ND, "truth": made.truth_N}
    save_file(tensors, side, metadata={"weights": weights, "classes": json.dumps(made.classes)})
    side.replace(path)


def _read(path: Path, weights: str) -> Features | None:
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        about = file.metadata()
        if about["weights"] != weights:
            return None
        return Features(
            features_Nd=file.get_tensor("features"),
            logits_ND=file.get_tensor("logits"),
            truth_N=file.get_tensor("truth"),
            classes=tuple(json.loads(about["classes"])),
        )
