"""`balora quickstart`: fine-tune a tiny model on a noisy task with three methods and with anchors, and compare the results.

Every run is a `balora train` in its own process, from a config in the output directory. A user can repeat each step by hand.
"""

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from balora.checkpoints.run_directory import read_record
from balora.errors import BALoraError
from balora.experiments.quickstart import model_directory
from balora.experiments.quickstart.bias_probes import probe_biases
from balora.experiments.quickstart.packing import token_blocks
from balora.experiments.quickstart.task import DATA_SECTION, NOISE, score, test_rows, train_rows
from balora.files import write_text
from balora.loading.trained import load
from balora.plots.html import write_page
from balora.plots.inline_svg import curve_figure, regularizer_figures
from balora.regularizers import consistency
from balora.training.callbacks import METRICS, read_metrics

SEED = 42
ANCHORED = "anchored"
"""The run of BA-LoRA with anchors: text that the pre-trained model wrote itself."""
METHODS = ("lora", "pissa", "balora", ANCHORED)
"""Runs by name: three methods, and BA-LoRA with anchors."""
BLOCKS, BLOCK_TOKENS = 64, 128
RESULTS = "results.json"
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Measured:
    """One row of the table."""

    method: str
    task: float
    """Fraction of clean test questions answered exactly, in [0, 1]."""
    drift: float
    """KL(pre-trained ‖ this model) on held-out pre-training text, nats per token."""
    entropy: float
    """Mean entropy of the next token on the same text, nats."""
    known: float
    """Fraction of the corpus's facts for which the true value is the likeliest, in [0, 1]."""
    seconds: float | None = None
    """Time of training alone; None for the pre-trained model."""
    memory: float | None = None
    """Peak resident memory of the training process, MiB; None for the pre-trained model."""


def run_quickstart(output: Path, say: Say) -> list[Measured]:
    """Train with LoRA, PiSSA, BA-LoRA and BA-LoRA with anchors, measure the models, print the table, and write the page.

    Finished runs in ``output`` are not repeated.

    Raises:
        BALoraError: The directory cannot be used, or a run failed.
    """
    began = time.monotonic()
    _prepare(output)
    say(
        f"A tiny Llama, pre-trained on a corpus with known flaws, learns a task with {NOISE:.0%} wrong training answers."
    )
    for method in METHODS:
        _train(output, method, say)
    say("Measuring on clean test questions and on held-out pre-training text ...")
    rows = _measure(output)
    for line in table(rows):
        say(line)
    curves = {method: read_metrics(output / method / METRICS) for method in METHODS}
    provenance = (read_record(output / METHODS[0]) or {}).get("provenance", {})
    facts = {"seed": SEED, "noise": NOISE, "tokens": BLOCKS * BLOCK_TOKENS, "provenance": provenance}
    y_label = "task loss (nats per target token)"
    page = write_page(
        output / "report.html",
        "quickstart.html.j2",
        package=__package__,
        rows=rows,
        facts=facts,
        task_loss=curve_figure(list(curves.items()), "task", "task loss", y_label=y_label, size=(7.2, 3.2)),
        parts=regularizer_figures([("balora", curves["balora"])]),
    )
    write_text(output / RESULTS, json.dumps([dataclasses.asdict(row) for row in rows], indent=2) + "\n")
    say(f"\nCurves and terms: {page}\nRuns and their configs: {output}\nTook {time.monotonic() - began:.0f} s.")
    return rows


def table(rows: Iterable[Measured]) -> list[str]:
    """Return the comparison as lines of text."""
    lines = [
        "",
        f"{'':12} {'task, clean':>12} {'drift (KL)':>12} {'entropy':>9} {'facts kept':>11} {'time':>8} {'memory':>10}",
    ]
    rows = list(rows)
    for row in rows:
        seconds = "-" if row.seconds is None else f"{row.seconds:.1f} s"
        memory = "-" if row.memory is None else f"{row.memory:.0f} MiB"
        lines.append(
            f"{row.method:12} {row.task:>12.1%} {row.drift:>12.4f} {row.entropy:>9.3f} {row.known:>11.1%} {seconds:>8} {memory:>10}"
        )
    kept = _what_anchors_kept(rows)
    note = "One seed and one tiny model: the table shows what is measured, and is no evidence that a method is better."
    return [*lines, "", *kept, note]


def _what_anchors_kept(rows: Sequence[Measured]) -> list[str]:
    """Return the comparison of BA-LoRA with and without anchors as lines; none if one of the two is missing."""
    found = {row.method: row for row in rows}
    if ANCHORED not in found or "balora" not in found:
        return []
    plain, held = found["balora"], found[ANCHORED]
    return [
        "With anchors (text that the pre-trained model wrote itself; no data is needed), BA-LoRA",
        f"drifts by {held.drift:.3f} nats a token instead of {plain.drift:.3f}, and keeps {held.known:.1%} of the facts instead of",
        f"{plain.known:.1%}, at {held.task:.1%} of the task instead of {plain.task:.1%}.",
    ]


def config_of(output: Path, method: str) -> dict[str, Any]:
    """Return the config of one run; the configs differ in the method alone, and in the anchors of the last one."""
    anchored = {"anchor": {"generate": 256, "tokens": 64}} if method == ANCHORED else {}
    return {
        "model": str(model_directory()),
        "task": "generation",
        "data": {"train": str(output / "data" / "train.jsonl"), **DATA_SECTION},
        "method": {"name": "balora" if method == ANCHORED else method, "rank": 8, "alpha": 8},
        **anchored,
        "training": {
            "learning_rate": 2.0e-3, "lr_scheduler_type": "cosine", "warmup_steps": 5, "num_train_epochs": 1,
            "per_device_train_batch_size": 16, "logging_steps": 5, "save_steps": 50, "save_total_limit": 1,
        },
        "seed": SEED,
        "output": str(output / method),
    }  # fmt: skip


def _prepare(output: Path) -> None:
    """Write data and configs. The directory may be that of an earlier call."""
    if output.is_dir() and any(output.iterdir()) and not (output / "data" / "train.jsonl").is_file():
        raise BALoraError(f"{output} contains other files. Choose a new or empty directory with --output.")
    try:
        (output / "data").mkdir(parents=True, exist_ok=True)
        for name, rows in (("train", train_rows(SEED)), ("test", test_rows(SEED))):
            write_text(output / "data" / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        for method in METHODS:
            write_text(output / f"{method}.yaml", yaml.safe_dump(config_of(output, method), sort_keys=False))
    except OSError as error:
        raise BALoraError(
            f"{output} cannot be written: {error.strerror or error}. Choose another directory with --output."
        ) from error


def _train(output: Path, method: str, say: Say) -> None:
    if (read_record(output / method) or {}).get("status") == "finished":
        say(f"\n{method}: already trained in {output / method}")
        return
    config = str(output / f"{method}.yaml")
    say(f"\n$ balora train {config}")
    done = subprocess.run([sys.executable, "-m", "balora.cli.main", "train", config], check=False)
    if done.returncode != 0:
        raise BALoraError(
            f"Training with {method} stopped; the message above says why. Correct the cause and repeat the command: finished runs "
            "are not repeated."
        )


@torch.inference_mode()
def _measure(output: Path) -> list[Measured]:
    tokenizer = AutoTokenizer.from_pretrained(model_directory())
    pretrained = AutoModelForCausalLM.from_pretrained(model_directory()).eval()
    blocks_NL = token_blocks(tokenizer, BLOCKS, BLOCK_TOKENS, split="held_out")
    reference_NLV = pretrained(blocks_NL).logits
    rows = []
    for name in ("pre-trained", *METHODS):
        trained = name in METHODS
        model = load(output / name) if trained else pretrained
        metrics = (read_record(output / name) or {})["metrics"] if trained else {}
        logits_NLV = model(blocks_NL).logits
        log_probs_NLV = logits_NLV.log_softmax(-1)
        rows.append(
            Measured(
                method=name,
                task=score(model, tokenizer, test_rows(SEED)),
                drift=float(consistency(logits_NLV, reference_NLV, temperature=1.0)),
                entropy=float(-(log_probs_NLV.exp() * log_probs_NLV).sum(-1).mean()),
                known=probe_biases(model, tokenizer).known,
                seconds=metrics.get("train_runtime"),
                memory=metrics.get("peak_memory_mib"),
            )
        )
    return rows
