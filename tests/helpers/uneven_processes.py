"""Train nine rows in two processes and in one, and write a report. Run by test_last_batch.py.

The third step has one row: accelerate fills its batch up with three rows from the beginning.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from balora.regularization import WEIGHTS
from processes import in_two_processes
from small_runs import TOKEN_TERMS, Gradients, flat, history, trainer
from tiny import labelled_rows, pair_rows, tiny_bert, tiny_llama, tiny_t5, token_rows
from two_processes import GLOBAL, GLOBAL_FEATURES, ROWS, adapted

REGRESSION = type(ROWS)(**ROWS.to_dict())
SUBSAMPLED = type(ROWS)(**{**ROWS.to_dict(), "consistency_fraction": 0.5})
# name: (model, rows, regularization)
RUNS = {
    "generation": (lambda: adapted(tiny_llama), token_rows, TOKEN_TERMS),
    "global generation": (lambda: adapted(tiny_llama), token_rows, GLOBAL),
    "seq2seq": (lambda: adapted(tiny_t5), pair_rows, TOKEN_TERMS),
    "classification": (lambda: adapted(tiny_bert), labelled_rows, ROWS),
    "subsampled": (lambda: adapted(tiny_bert), labelled_rows, SUBSAMPLED),
    "global features": (lambda: adapted(tiny_bert), labelled_rows, GLOBAL_FEATURES),
    "regression": (
        lambda: adapted(lambda: tiny_bert(num_labels=1)), lambda n: labelled_rows(n, labels=1), REGRESSION,
    ),
}  # fmt: skip
RESUMED = ("generation", "classification")


def fit(name: str, folder: Path, processes: int, *, resume: bool = False) -> tuple[dict, dict[str, torch.Tensor]]:
    """Train one epoch: two steps of four rows and one of one row."""
    make, rows, config = RUNS[name]
    batch_size = 4 if processes == 1 and config.batch_statistics == "global" else 2
    seen = Gradients()
    run = trainer(
        make(), folder / name, config=config, rows=rows(9), callbacks=[seen], optim="sgd", learning_rate=0.2,
        max_steps=-1, num_train_epochs=1, per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=4 // (batch_size * processes), max_grad_norm=0.0, save_strategy="steps", save_steps=2,
        eval_strategy="steps", eval_steps=1, eval_dataset=rows(20)[9:], per_device_eval_batch_size=4 - processes // 2,
        **({"ddp_backend": "gloo"} if processes > 1 else {}),
    )  # fmt: skip
    run.train(resume_from_checkpoint=str(folder / name / "checkpoint-2") if resume else None)
    logged = {key: history(run, key) for key in ("loss", "task", *WEIGHTS, "eval_loss")}
    tensors = {f"{i} {key.removeprefix('module.')}": g for i, step in enumerate(seen.steps) for key, g in step.items()}
    return logged, {"weights": flat(run.model), **tensors}


def work(rank: int, folder: Path) -> None:
    os.environ["ACCELERATE_USE_CPU"] = "true"
    for name in RUNS:
        logged, tensors = fit(name, folder / "two", 2)
        (folder / f"{name}-{rank}.json").write_text(json.dumps(logged))
        save_file(tensors, folder / f"{name}-{rank}.safetensors")
        if name in RESUMED:
            _, tensors = fit(name, folder / "two", 2, resume=True)
            save_file(tensors, folder / f"{name}-{rank}-resumed.safetensors")


def main(folder: Path) -> None:
    in_two_processes(work, folder)
    report = {}
    for name in RUNS:
        logged, expected = fit(name, folder / "one", 1)
        first, second = (load_file(folder / f"{name}-{rank}.safetensors") for rank in (0, 1))
        assert first.keys() == expected.keys()
        steps = [key for key in expected if key.startswith("2 ")]
        report[name] = {
            "last": max(float((first[k] - expected[k]).norm()) for k in steps)
            / max(float(expected[k].norm()) for k in steps),
            "weights": float((first["weights"] - expected["weights"]).abs().max()),
            "ranks": float((first["weights"] - second["weights"]).abs().max()),
            "logged": [logged, json.loads((folder / f"{name}-0.json").read_text())],
        }
        if name in RESUMED:
            again = load_file(folder / f"{name}-0-resumed.safetensors")["weights"]
            report[name]["resumed"] = float((again - first["weights"]).abs().max())
    (folder / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
