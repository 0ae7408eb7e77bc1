"""Run directories like those of `balora train`, made in seconds from a tiny model and random tokens."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainingArguments

import balora
from balora.checkpoints.provenance import provenance
from balora.config.run_config import RunConfig
from balora.loading.pretrained import load_model
from balora.loading.source import ModelSource
from balora.methods import adapt
from balora.training.run import save_result
from balora.training.trainer import BALoraTrainer
from tiny import tiny_tokenizer

LABELS = ["bad", "fine", "good"]
_DATA = {
    "generation": {"train": "rows.jsonl", "prompt": "question", "response": "answer"},
    "seq2seq": {"train": "rows.jsonl", "prompt": "word", "response": "sound"},
    "classification": {"train": "rows.jsonl", "text": "sentence", "label": "label", "labels": LABELS},
    "regression": {"train": "rows.jsonl", "text": "sentence", "score": "score"},
}


@dataclasses.dataclass
class TrainedRun:
    """Result of `trained_run`."""

    folder: Path
    base: Path
    trainer: BALoraTrainer
    settings: RunConfig

    @property
    def model(self) -> nn.Module:
        return self.trainer.model.eval()


def trained_run(
    folder: Path,
    base: PreTrainedModel | Path,
    task: str,
    *,
    method: str = "balora",
    steps: int = 3,
    rank: int = 4,
    checkpoints: bool = False,
    finish: bool = True,
    options: dict[str, Any] | None = None,
    **settings: Any,
) -> TrainedRun:
    """Train for a few large steps, so that a wrong base or scaling changes every logit."""
    base_path = base if isinstance(base, Path) else folder.with_name(f"{folder.name}-base")
    if isinstance(base, PreTrainedModel):
        base.save_pretrained(base_path)
        tiny_tokenizer().save_pretrained(base_path)
    config = RunConfig.from_dict({
        "model": str(base_path), "task": task, "data": _DATA[task], "output": str(folder),
        "method": {"name": method, **({"rank": rank} if method != "full" else {}), **(options or {})}, **settings,
    })  # fmt: skip
    torch.manual_seed(config.seed)
    num_labels = {"classification": len(LABELS), "regression": 1}.get(task)
    id2label = dict(enumerate(LABELS)) if task == "classification" else None
    model = load_model(ModelSource.from_config(config), num_labels, id2label, tokenizer=tiny_tokenizer())
    alpha = 2 * config.method.rank
    model = adapt(model, config.method.name, rank=config.method.rank, alpha=alpha, seed=config.seed, **(options or {}))
    arguments = TrainingArguments(
        str(folder), per_device_train_batch_size=4, max_steps=steps, learning_rate=3e-2, report_to=[], use_cpu=True,
        save_strategy="steps" if checkpoints else "no", save_steps=1, logging_steps=1000, disable_tqdm=True,
        seed=config.seed, remove_unused_columns=False, label_names=["labels"],
    )  # fmt: skip
    trainer = BALoraTrainer(
        model=model, args=arguments, train_dataset=_rows(model, task), data_collator=_stack,
        regularization=config.regularization,
    )  # fmt: skip
    trainer.train()
    (folder / "config.yaml").write_text(config.dump_yaml())
    if finish:
        save_result(trainer, tiny_tokenizer(), folder)
    record = {
        "status": "finished" if finish else "running",
        "provenance": provenance(),
        "metrics": {"train_loss": 1.25},
    }
    (folder / "run.json").write_text(json.dumps(record))
    return TrainedRun(folder, base_path, trainer, config)


def batch(model: nn.Module, *, rows: int = 3, length: int = 11, seed: int = 5) -> dict[str, Tensor]:
    """Return random tokens with padding as inputs of the model."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    size = inner.get_input_embeddings().num_embeddings
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(4, size, (rows, length), generator=generator)
    mask = torch.ones_like(tokens)
    tokens[1:, -3:], mask[1:, -3:] = 0, 0
    inputs = {"input_ids": tokens, "attention_mask": mask}
    if inner.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.randint(4, size, (rows, 5), generator=generator)
    return inputs


def logits(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Return the logits at the positions that are not padding."""
    with torch.no_grad():
        found = model.eval()(**inputs).logits.float()
    by_token = found.dim() == 3 and "decoder_input_ids" not in inputs
    return found[inputs["attention_mask"].bool()] if by_token else found


def _rows(model: nn.Module, task: str) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    size = model.config.vocab_size
    rows = []
    for number in range(16):
        tokens = torch.randint(4, size, (12,), generator=generator)
        row = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        if task in ("generation", "seq2seq"):
            row["labels"] = tokens
            if task == "seq2seq":
                row["decoder_input_ids"] = tokens
        else:
            row["labels"] = torch.tensor(number % 3 if task == "classification" else number / 16)
        rows.append(row)
    return rows


def _stack(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def save_loose(run: TrainedRun, folder: Path) -> Path:
    """Move the adapter out of its run directory."""
    (run.folder / "adapter").rename(folder)
    return folder


__all__ = ["LABELS", "TrainedRun", "balora", "batch", "logits", "save_loose", "trained_run"]
