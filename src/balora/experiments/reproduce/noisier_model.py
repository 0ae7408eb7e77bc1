"""A noisier pre-trained model, made from MiniLM-L6: the stand-in of table 3 for a model of raw web text.

All weights are trained on rows of SST-2 of which half have a wrong label, so that the labels say nothing about the sentences. Only
the encoder is saved: the original model has no classification head either.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer

from balora.checkpoints.provenance import provenance
from balora.config.run_config import RunConfig
from balora.experiments.reproduce.configs import small
from balora.experiments.reproduce.experiment import Paths, Preparation
from balora.files import apply_umask
from balora.logging_control import quiet
from balora.training.run import run

ROWS = 3200
"""Number of SST-2's first rows that the model is trained on; the experiment's runs sample theirs from the others."""
NOISE = 0.5
RATE = 2.0e-4
SEED = 7


def noisier_minilm(paths: Paths) -> str:
    """Return the directory of the noisier encoder."""
    return str(paths.prepared / "minilm-noisier")


def make(paths: Paths) -> dict[str, Any]:
    """Train the encoder on wrong labels, write it, and return facts about it."""
    training, target = paths.prepared / "training", noisier_minilm(paths)
    scratch = f"{target}.tmp"
    shutil.rmtree(training, ignore_errors=True)  # left by an interrupted attempt
    data = {"split": f"train[:{ROWS}]", "subsample": None, "eval": None, "label_noise": NOISE}
    values = small("sst2", data=data, training={"learning_rate": RATE, "disable_tqdm": True})(paths)
    values |= {"method": {"name": "full"}, "regularization": False, "seed": SEED, "output": str(training)}
    metrics = run(RunConfig.from_dict(values)).metrics
    shutil.rmtree(scratch, ignore_errors=True)
    with quiet():
        encoder = AutoModel.from_pretrained(training / "model")
        moved = relative_change(encoder, AutoModel.from_pretrained(paths.minilm))
    encoder.save_pretrained(scratch)
    AutoTokenizer.from_pretrained(training / "model").save_pretrained(scratch)
    shutil.rmtree(target, ignore_errors=True)
    apply_umask(*Path(scratch).iterdir())
    os.replace(scratch, target)
    shutil.rmtree(training)
    return {
        "model": paths.minilm,
        "rows": ROWS,
        "label_noise": NOISE,
        "learning_rate": RATE,
        "seed": SEED,
        "train_loss": metrics.get("train_loss"),
        "weights_moved": moved,
        "provenance": provenance(),
    }


@torch.no_grad()
def relative_change(model: torch.nn.Module, original: torch.nn.Module) -> float:
    """Return the norm of the change of all weights, relative to the norm of the original weights."""
    before = dict(original.named_parameters())
    pairs = [(weight.double(), before[name].double()) for name, weight in model.named_parameters()]
    change = sum(float((new - old).square().sum()) for new, old in pairs)
    return (change / sum(float(old.square().sum()) for _, old in pairs)) ** 0.5


NOISIER_MODEL = Preparation(
    title="MiniLM-L6 trained on wrong labels, as a noisier pre-trained model",
    needs=lambda paths: [paths.minilm, paths.data("glue/SST-2/train.tsv")],
    make=make,
    seconds=80.0,
)
