"""Fine-tune a real model through the command, on one card: trained, killed, resumed, exported, evaluated.

`python benchmarks/real_run.py --variant plain --model … --data … --work …` is a part of `gpu_session.py`. The variants are
BA-LoRA as the paper has it (``plain``), and the same with anchors that the model wrote itself, of a constant weight
(``anchored``) or with a budget of drift (``budget``).
"""

from __future__ import annotations

import concurrent.futures
import json
import shutil
import time
from pathlib import Path
from typing import Any

import transformers

import balora
from balora.config.run_config import RunConfig
from balora.training.callbacks import read_metrics
from result_rows import Rows
from session_inputs import DEVICE, Inputs, argument_parser, attempt, command, prepare, train_killed, write_config
from task_and_drift import TaskAndDrift

VARIANTS = ("plain", "anchored", "budget")


def measure(rows: Rows, inputs: Inputs, variant: str) -> None:
    """Train, kill, resume, export and evaluate one variant; write a row."""
    steps, saved = (8, 4) if inputs.tiny else (200, 100)
    extra: dict[str, Any] = {}
    if variant != "plain":
        if "anchor" not in RunConfig.model_fields:
            rows.add(kind="run", variant=variant, status="skipped: this balora has no anchors yet")
            return
        extra["anchor"] = anchor_section(inputs, variant)
    name = f"real-{variant}"
    config = write_config(inputs, name, steps=steps, training={"save_strategy": "steps", "save_steps": saved}, **extra)
    run = Path(inputs.work / "runs" / name)
    shutil.rmtree(run, ignore_errors=True)
    begun = time.perf_counter()
    found = train_killed(config, run, saved)
    record = json.loads((run / "run.json").read_text())
    took, metrics = time.perf_counter() - begun, read_metrics(run / "metrics.jsonl")
    losses = [line["loss"] for line in metrics if "loss" in line]
    done = steps - (found["killed_at"] or 0)
    seconds = record["metrics"]["train_runtime"] / done
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        forms = ("merged", "lora")
        exports = dict(zip(forms, pool.map(lambda form: _export(inputs, run, form), forms), strict=True))
    base = inputs.load()
    meter = TaskAndDrift(inputs, base, (8, 8) if inputs.tiny else (200, 64))
    before = meter.loss(base).row()
    del base
    trained = balora.load(run).to(DEVICE)
    after, drift = meter.loss(trained).row(), meter.drift(trained).row()
    del trained
    merged = transformers.AutoModelForCausalLM.from_pretrained(exports["merged"]["folder"], dtype="auto").to(DEVICE)
    rows.add(
        kind="run", variant=variant, steps=steps, **found, resumed=record["resumed"], seconds=took, step_seconds=seconds,
        peak_mib=record["metrics"]["peak_memory_mib"], first_losses=losses[:10], last_losses=losses[-10:],
        loss_before=before, loss_after=after, drift=drift, exports=exports,
        merged_loss=meter.loss(merged).mean, merged_drift=meter.drift(merged).mean,
        settings=dict(extra), metrics=record["metrics"],
    )  # fmt: skip


def anchor_section(inputs: Inputs, variant: str) -> dict[str, Any]:
    """Return the ``anchor`` section of an anchored run."""
    size = {"generate": 16, "tokens": 24} if inputs.tiny else {"generate": 64, "tokens": 128}
    return {**size, "share": 0.25, **({"weight": 5.0} if variant == "anchored" else {"budget": 0.02})}


def _export(inputs: Inputs, run: Path, form: str) -> dict[str, Any]:
    folder, begun = inputs.work / "exports" / f"{run.name}-{form}", time.perf_counter()
    shutil.rmtree(folder, ignore_errors=True)
    said = command("export", run, "--to", form, "--output", folder)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return {
        "folder": str(folder),
        "said": said.strip()[-300:],
        "seconds": time.perf_counter() - begun,
        "mib": size / 2**20,
    }


def main() -> None:
    """Parse the arguments and measure."""
    parser = argument_parser(__doc__)
    parser.add_argument("--variant", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    given = parser.parse_args()
    inputs, rows = prepare(given), Rows("real_run", given.output)
    for variant in given.variant:
        attempt(rows, "run", lambda v=variant: measure(rows, inputs, v))


if __name__ == "__main__":
    main()
