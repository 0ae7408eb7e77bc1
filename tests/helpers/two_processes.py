"""Train the same runs in two processes and in one, and write a report. Run by test_two_processes.py."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import balora
from balora import Anchors, RegularizationConfig
from balora.errors import Interrupted
from balora.regularization import WEIGHTS
from balora.training.stopping import StopRequest
from processes import in_two_processes
from small_runs import ALL_TERMS, CONSTANT, TOKEN_TERMS, Do, Gradients, flat, history, trainer
from tiny import labelled_rows, tiny_bert, tiny_llama, token_rows

ROWS = RegularizationConfig(consistency=0.5, diversity=0.0, spectral=0.0, **CONSTANT)


def adapted(make, method: str = "pissa"):
    return balora.adapt(make(), method=method, **({} if method == "full" else {"rank": 4}))


GLOBAL = RegularizationConfig(**{**ALL_TERMS.to_dict(), "batch_statistics": "global"})
GLOBAL_ROWS = RegularizationConfig(
    consistency=0.5, diversity=0.3, spectral=0.2, variance=0.4, spectral_rank=1, batch_statistics="global", **CONSTANT
)
FITTED = RegularizationConfig(**{**ROWS.to_dict(), "teacher_head": "probe"})
GLOBAL_FEATURES = RegularizationConfig(
    **{**GLOBAL_ROWS.to_dict(), "diversity_target": "features", "spectral_target": "features"}
)

ANCHORS = Anchors(
    rows=tuple({"input_ids": [5 + (3 * row + at) % 80 for at in range(5 + row % 3)]} for row in range(14)),
    weight=3.0, share=1.0, budget=0.05,
)  # fmt: skip
HELD = {"held generation": ANCHORS, "held classification": ANCHORS}
# name: (model, rows, regularization)
RUNS = {
    "held generation": (lambda: adapted(tiny_llama), token_rows, TOKEN_TERMS),
    "held classification": (lambda: adapted(tiny_bert), labelled_rows, ROWS),
    "generation": (lambda: adapted(tiny_llama), token_rows, TOKEN_TERMS),
    "full": (lambda: adapted(lambda: tiny_llama(tie_word_embeddings=False), "full"), token_rows, TOKEN_TERMS),
    "classification": (lambda: adapted(tiny_bert), labelled_rows, ROWS),
    "fitted head": (lambda: adapted(tiny_bert), labelled_rows, FITTED),
    "global generation": (lambda: adapted(tiny_llama), token_rows, GLOBAL),
    "global classification": (lambda: adapted(tiny_bert), labelled_rows, GLOBAL_ROWS),
    "global features": (lambda: adapted(tiny_bert), labelled_rows, GLOBAL_FEATURES),
}


def fit(name: str, folder: Path, processes: int) -> tuple[dict[str, list[float]], dict[str, torch.Tensor]]:
    """Train three steps of four rows and return what was logged, and every tensor.

    Two processes take two rows each. One process takes two rows twice, or for global statistics four rows in one micro-batch.
    """
    make, rows, config = RUNS[name]
    batch_size = 4 if processes == 1 and config.batch_statistics == "global" else 2
    seen = Gradients()
    run = trainer(
        make(), folder / name, config=config, rows=rows(26), callbacks=[seen], optim="sgd", learning_rate=0.5, max_steps=3,
        per_device_train_batch_size=batch_size, gradient_accumulation_steps=4 // (batch_size * processes), max_grad_norm=0.0,
        save_strategy="steps",
        save_steps=2, save_total_limit=1, eval_strategy="steps", eval_steps=3, eval_dataset=rows(8), logging_steps=3,
        per_device_eval_batch_size=4, anchors=HELD.get(name),
        **({"ddp_backend": "gloo"} if processes > 1 else {}),
    )  # fmt: skip
    run.train()
    logged = {
        key: history(run, key)
        for key in ("loss", "task", *WEIGHTS, "logit_variance", "eval_loss", "anchor", "anchor_drift")
    }
    tensors = {f"{i} {key.removeprefix('module.')}": g for i, step in enumerate(seen.steps) for key, g in step.items()}
    return logged, {"weights": flat(run.model), **tensors}


def work(rank: int, folder: Path) -> None:
    os.environ["ACCELERATE_USE_CPU"] = "true"
    for name in RUNS:
        logged, tensors = fit(name, folder / "two", 2)
        (folder / f"{name}-{rank}.json").write_text(json.dumps(logged))
        save_file(tensors, folder / f"{name}-{rank}.safetensors")
    (folder / f"stop-{rank}").write_text(str(stop(rank, folder)))


def stop(rank: int, folder: Path) -> int:
    """Send a stop request to the second process alone, and return the step after which this process stopped."""
    request = StopRequest()
    ask = Do("on_step_end", 2, lambda: setattr(request, "signal_number", signal.SIGTERM if rank else None))
    run = trainer(
        adapted(tiny_llama), folder / "stopped", rows=token_rows(26), callbacks=[ask], max_steps=5, ddp_backend="gloo"
    )
    run.stop_request = request
    try:
        run.train()
    except Interrupted:
        return run.state.global_step
    return -1


def main(folder: Path) -> None:
    in_two_processes(work, folder)
    stops = [int((folder / f"stop-{rank}").read_text()) for rank in (0, 1)]
    report = {"stops": stops, "stopped": sorted(p.name for p in (folder / "stopped").iterdir())}
    for name in RUNS:
        logged, expected = fit(name, folder / "one", 1)
        first, second = (load_file(folder / f"{name}-{rank}.safetensors") for rank in (0, 1))
        assert first.keys() == expected.keys()
        size = max(float(g.norm()) for key, g in expected.items() if key != "weights")
        report[name] = {
            "gradient": max(float((first[k] - g).norm()) / size for k, g in expected.items() if k != "weights"),
            "weights": float((first["weights"] - expected["weights"]).abs().max()),
            "ranks": float((first["weights"] - second["weights"]).abs().max()),
            "logged": [logged] + [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in (0, 1)],
            "folder": sorted(p.name for p in (folder / "two" / name).iterdir()),
        }
    (folder / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
