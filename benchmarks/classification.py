"""Measure three epochs of a classifier, stock PiSSA against balora: `python benchmarks/classification.py`.

``cached`` runs the teacher once for each example (the default), ``online`` at every step.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from pathlib import Path

import peft
import torch
import transformers

import balora
from result_rows import Rows, ratios, summary

ORDER = ("stock", "cached", "online")


def model_of(layers: int, hidden: int) -> transformers.BertForSequenceClassification:
    """Return a BERT with random weights, the same in each call."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=8000, hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers,
        num_attention_heads=hidden // 32, num_labels=3, problem_type="single_label_classification",
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


def random_rows(count: int, longest: int) -> list[dict[str, list[int]]]:
    """Return rows of different lengths."""
    generator = torch.Generator().manual_seed(1)
    rows = []
    for _ in range(count):
        length = int(torch.randint(longest // 4, longest + 1, (1,), generator=generator))
        tokens = torch.randint(4, 8000, (length,), generator=generator).tolist()
        rows.append({"input_ids": tokens, "labels": tokens[0] % 3})
    return rows


def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Pad rows on the right."""
    width = max(len(row["input_ids"]) for row in rows)
    ids = torch.tensor([row["input_ids"] + [0] * (width - len(row["input_ids"])) for row in rows])
    return {
        "input_ids": ids,
        "attention_mask": ids.ne(0).long(),
        "labels": torch.tensor([row["labels"] for row in rows]),
    }


def run(variant: str, given: argparse.Namespace, directory: str) -> float:
    """Return the seconds of one training."""
    model = model_of(given.layers, given.hidden)
    arguments = transformers.TrainingArguments(
        directory, per_device_train_batch_size=16, num_train_epochs=given.epochs, report_to=[], save_strategy="no",
        logging_steps=50, use_cpu=True, disable_tqdm=True, learning_rate=1e-4,
    )  # fmt: skip
    rows = random_rows(given.rows, given.longest)
    if variant == "stock":
        config = peft.LoraConfig(
            r=8, lora_alpha=8, target_modules=["query", "key", "value", "dense"], init_lora_weights="pissa_niter_4",
            task_type="SEQ_CLS", exclude_modules=r"bert\.pooler\.dense",
        )  # fmt: skip
        adapted = peft.get_peft_model(model, config)
        trainer = transformers.Trainer(model=adapted, args=arguments, train_dataset=rows, data_collator=collate)
    else:
        adapted = balora.adapt(model, "balora", rank=8, target_modules=r"bert\.encoder.*(query|key|value|dense)")
        trainer = balora.BALoraTrainer(
            model=adapted, args=arguments, train_dataset=rows, data_collator=collate,
            teacher_cache="auto" if variant == "cached" else "off",
        )  # fmt: skip
    trainer.remove_callback(transformers.PrinterCallback)
    begun = given.clock()
    trainer.train()
    return given.clock() - begun


def main() -> None:
    """Parse the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try the script")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true", help="count CPU seconds, for a machine with other work")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("balora").setLevel(logging.ERROR)
    given.clock = time.process_time if given.cpu_time else time.perf_counter
    given.layers, given.hidden, given.rows, given.longest = (1, 32, 32, 12) if given.tiny else (3, 192, 256, 96)
    rows = Rows("classification", given.output)
    seconds: dict[str, list[float]] = {name: [] for name in ORDER}
    with tempfile.TemporaryDirectory() as directory:
        run("stock", argparse.Namespace(**{**vars(given), "rows": 16}), directory)  # warm-up
        for turn in range(given.rounds):
            for name in ORDER if turn % 2 else ORDER[::-1]:
                seconds[name].append(run(name, given, directory))
    for name, times in seconds.items():
        rows.add(kind="variant", variant=name, epochs=given.epochs, seconds=summary(times), all=times)
    for name in ORDER[1:]:
        rows.add(
            kind="ratio", above=name, below="stock", epochs=given.epochs, ratio=ratios(seconds[name], seconds["stock"])
        )


if __name__ == "__main__":
    main()
