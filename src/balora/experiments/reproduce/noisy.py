"""A noisier pre-trained model, made from MiniLM-L6: table 3's stand-in for a model of raw web text.

All its weights are trained on rows of SST-2 whose labels are wrong one time in two, so that they say nothing of the sentence. What
is kept is the encoder; the classification head goes, as the untouched model has none either.
"""

from __future__ import annotations

import os
import shutil
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer

from balora.checkpoints.provenance import provenance
from balora.config.run_config import RunConfig
from balora.experiments.reproduce.paths import Places
from balora.experiments.reproduce.prepare import Preparation
from balora.experiments.reproduce.small import minilm_on
from balora.logging_control import quiet
from balora.training.run import run

ROWS = 3200
"""Of SST-2, the first ones; the experiment's runs take theirs from the rest."""
NOISE = 0.5
RATE = 2.0e-4
SEED = 7


def noisy_minilm(places: Places) -> str:
    """The folder of the noisier encoder."""
    return str(places.prepared / "minilm-noisier")


def make(places: Places) -> dict[str, Any]:
    """Train the encoder on noise and write it."""
    folder, made = places.prepared / "training", noisy_minilm(places)
    shutil.rmtree(folder, ignore_errors=True)  # what an interrupted attempt left
    settings = _settings(places, str(folder))
    metrics = run(settings).metrics
    side = f"{made}.tmp"
    shutil.rmtree(side, ignore_errors=True)
    with quiet():
        encoder = AutoModel.from_pretrained(folder / "model")
        moved = _moved(encoder, places.minilm)
    encoder.save_pretrained(side)
    AutoTokenizer.from_pretrained(folder / "model").save_pretrained(side)
    shutil.rmtree(made, ignore_errors=True)
    os.replace(side, made)
    shutil.rmtree(folder)
    return {
        "model": places.minilm,
        "rows": ROWS,
        "label_noise": NOISE,
        "learning_rate": RATE,
        "seed": SEED,
        "train_loss": metrics.get("train_loss"),
        "weights_moved": moved,
        "provenance": provenance(),
    }


def _settings(places: Places, output: str) -> RunConfig:
    values = minilm_on(places, "sst2", split=f"train[:{ROWS}]", subsample=None, eval=None, label_noise=NOISE)
    values |= {"method": {"name": "full"}, "regularization": False, "seed": SEED, "output": output}
    values["training"] |= {"learning_rate": RATE, "disable_tqdm": True}
    return RunConfig.from_dict(values)


def _moved(encoder: torch.nn.Module, original: str) -> float:
    """How far the weights went, as a share of their own norm."""
    before = dict(AutoModel.from_pretrained(original).named_parameters())
    gaps, sizes = 0.0, 0.0
    with torch.no_grad():
        for name, after in encoder.named_parameters():
            gaps += float((after.double() - before[name].double()).square().sum())
            sizes += float(before[name].double().square().sum())
    return (gaps / sizes) ** 0.5


NOISIER = Preparation(
    title="MiniLM-L6 trained on wrong labels, as a noisier pre-trained model",
    needs=lambda places: [places.minilm, places.data("glue/SST-2/train.tsv")],
    make=make,
    seconds=80.0,
)
