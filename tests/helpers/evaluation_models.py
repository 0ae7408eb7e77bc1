"""Directories of tiny random models for evaluations."""

from __future__ import annotations

from pathlib import Path

from tiny import tiny_bert, tiny_llama, tiny_tokenizer


def classifier_at(folder: Path, labels: list[str], seed: int = 0) -> Path:
    model = tiny_bert(num_labels=len(labels), seed=seed)
    model.config.id2label = dict(enumerate(labels))
    model.config.label2id = {label: number for number, label in enumerate(labels)}
    return _save(model, folder)


def generator_at(folder: Path, seed: int = 0, **config) -> Path:
    return _save(tiny_llama(seed=seed, **config), folder)


def _save(model, folder: Path) -> Path:
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
