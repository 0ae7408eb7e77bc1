"""Anchors on the packaged model: five seeds of plain and anchored LoRA and PiSSA. Writes rows and docs/results/anchors.md.

`python scripts/anchor_study.py` goes on where it stopped; `--jobs 2` runs two runs at a time. A run takes about half a minute.
The task is the quickstart's, 150 steps of 16 rows, a fifth of them wrong. Anchors are text that the pre-trained model wrote.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from study_runs import append_run, read_rows

ROOT = Path(__file__).resolve().parents[1]
ROWS = ROOT / "docs" / "results" / "anchors" / "rows.jsonl"
PAGE = ROOT / "docs" / "results" / "anchors.md"
SEEDS = (1, 2, 3, 4, 5)
RATES = {"lora": 6e-3, "pissa": 2e-3}
BUDGETS = (0.01, 0.03, 0.1)
CONTROL = 512
"""Anchors that steer a budget, and as many others on which the drift reached is reported."""
OWN = ("anchor_drift", "anchor_drift_error", "anchor_scale", "anchor_final_weight", "train_runtime")
HELD = {"generate": 512, "tokens": 64, "weight": 2.0, "share": 0.25}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "anchored": {"anchor": HELD},
    **{f"budget {b:g}": {"anchor": {**HELD, "budget": b, "control": CONTROL}} for b in BUDGETS},
}
MEASURES = {"task": "task, clean", "drift": "drift", "known": "facts kept"}


def main() -> None:
    """Run what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--one", help="a run as JSON; prints its row")
    parser.add_argument("--page", action="store_true", help="write the page only")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(run(**json.loads(given.one))))
        return
    done = rows()
    todo = [
        {"method": method, "setting": setting, "seed": seed}
        for setting, values in SETTINGS.items()
        for seed in SEEDS
        for method in values.get("methods", RATES)
        if not any((r["method"], r["setting"], r["seed"]) == (method, setting, seed) for r in done)
    ]
    if not given.page:
        with ThreadPoolExecutor(given.jobs) as pool:
            for _ in pool.map(_in_a_process, todo):
                write_page()
    write_page()


def _in_a_process(what: dict[str, Any]) -> None:
    append_run(ROWS, __file__, "--one", json.dumps(what))


def rows() -> list[dict[str, Any]]:
    """Return the finished runs."""
    return read_rows(ROWS)


def run(method: str, setting: str, seed: int, store: Path | None = None) -> dict[str, Any]:
    """Train once and measure; runs with the same ``store`` share the anchors that they sample."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

    import balora
    from balora.checkpoints.provenance import provenance
    from balora.data.collate import make_collator
    from balora.experiments.quickstart import model_directory
    from balora.experiments.quickstart.bias_probes import probe_biases
    from balora.experiments.quickstart.packing import token_blocks
    from balora.experiments.quickstart.task import score, test_rows, train_rows
    from balora.regularizers import consistency

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(model_directory())
    data = []
    for row in train_rows(seed):
        prompt = [tokenizer.bos_token_id, *tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]]
        answer = [*tokenizer(row["response"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        data.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
    base = AutoModelForCausalLM.from_pretrained(model_directory()).eval()
    model = balora.adapt(AutoModelForCausalLM.from_pretrained(model_directory()), method, rank=8, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        trainer = balora.BALoraTrainer(
            model=model,
            args=TrainingArguments(
                folder, max_steps=150, learning_rate=RATES[method], lr_scheduler_type="cosine", warmup_steps=5,
                per_device_train_batch_size=16, save_strategy="no", report_to=[], use_cpu=True, seed=seed,
                disable_tqdm=True, logging_steps=50,
            ),
            train_dataset=data,
            data_collator=make_collator("generation", tokenizer, model),
            regularization=balora.RegularizationConfig.off(),
            anchors=balora.Anchors.from_value(SETTINGS[setting].get("anchor")),
            processing_class=tokenizer,
        )  # fmt: skip
        if store is not None:
            trainer.anchor_store = store
        metrics = trainer.train().metrics
    model.eval()
    with torch.inference_mode():
        blocks_NL = token_blocks(tokenizer, 64, 128, split="held_out")
        drift = float(consistency(model(blocks_NL).logits, base(blocks_NL).logits, temperature=1.0))
        found = {"task": score(model, tokenizer, test_rows(seed)), "known": probe_biases(model, tokenizer).known}
    own = {name: metrics[name] for name in OWN if name in metrics}
    return {"method": method, "setting": setting, "seed": seed, **found, "drift": drift, **own, **provenance()}


def write_page() -> None:
    """Write the page from the rows."""
    done = rows()
    lines = []
    for method, setting in sorted({(r["method"], r["setting"]) for r in done}):
        group = [r for r in done if (r["method"], r["setting"]) == (method, setting)]
        cells = [_mean_sd([r[name] for r in group]) for name in MEASURES]
        lines.append(f"| {method}, {setting} | {len(group)} | {' | '.join(cells)} |")
    paired = [line for method in RATES if (line := _against_plain(done, method))]
    budgets = [
        f"| {r['method']} | {float(r['setting'].split()[1]):g} | {r['seed']} | {r['anchor_drift']:.4f} ± "
        f"{r['anchor_drift_error']:.4f} | {r['anchor_scale']:.2f} | {r['task']:.3f} | {r['anchor_final_weight']:.3g} |"
        for r in sorted(done, key=lambda r: (r["method"], r["setting"], r["seed"]))
        if r["setting"].startswith("budget")
    ]
    PAGE.write_text(
        _PAGE.format(
            rows="\n".join(lines),
            paired="\n".join(paired),
            budgets="\n".join(budgets) or "| - |" + " - |" * 6,
            within=_within(done),
        ),
        encoding="utf-8",
    )


def _mean_sd(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


def _against_plain(done: list[dict[str, Any]], method: str) -> str | None:
    """Return the line of anchored against plain, seed by seed, with Student's 95 % intervals."""
    from balora.evaluation.significance.intervals import estimate

    by = {s: {r["seed"]: r for r in done if (r["method"], r["setting"]) == (method, s)} for s in ("plain", "anchored")}
    seeds = sorted(by["plain"].keys() & by["anchored"].keys())
    if len(seeds) < 2:
        return None
    cells = []
    for name in MEASURES:
        found = estimate([by["anchored"][s][name] - by["plain"][s][name] for s in seeds])
        low, high = found.interval() if found is not None else (float("nan"), float("nan"))
        mean = statistics.fmean(by["anchored"][s][name] - by["plain"][s][name] for s in seeds)
        cells.append(f"{mean:+.3f} ({low:+.3f} to {high:+.3f})")
    ratio = statistics.fmean(by["anchored"][s]["drift"] / by["plain"][s]["drift"] for s in seeds)
    return f"| {method} | {len(seeds)} | {' | '.join(cells)} | 1 / {1 / ratio:.1f} |"


def _within(done: list[dict[str, Any]]) -> str:
    """Say in how many runs the drift reached is within 20 % of the budget, or cannot be told from that."""
    runs = [r for r in done if r["setting"].startswith("budget")]
    if not runs:
        return "No run with a budget has been made yet."
    distances = [(r["anchor_drift"] / b - 1.0, 2 * r["anchor_drift_error"] / b) for r in runs for b in [_budget(r)]]
    hit = sum(abs(distance) <= 0.2 for distance, _ in distances)
    near = sum(abs(distance) - error <= 0.2 for distance, error in distances)
    missing = [
        f"{method}, budget {b:g}"
        for method in RATES
        for b in BUDGETS
        if {r["seed"] for r in runs if r["method"] == method and _budget(r) == b} != set(SEEDS)
    ]
    lacks = f" Not all five seeds have been run of: {'; '.join(missing)}." if missing else ""
    return (
        f"In {hit} of {len(runs)} runs the drift reached is within 20 % of the budget; in {near} the distance is not above 20 % "
        f"by two standard errors.{lacks}"
    )


def _budget(row: dict[str, Any]) -> float:
    return float(row["setting"].split()[1])


_PAGE = """\
# Anchors on the packaged model

`python scripts/anchor_study.py` writes this page. A tiny Llama, pre-trained on a corpus with known facts, learns the quickstart's
task: 150 steps of 16 rows, a fifth of them with a wrong answer. LoRA at learning rate 6e-3 and PiSSA at 2e-3, rank 8, without the
paper's terms. The anchors are text that the pre-trained model wrote itself: 512 sequences of 64 tokens at most, a quarter of the
task's tokens in each step, weight 2. The drift is KL(pre-trained ‖ tuned) in nats per token on held-out pre-training text, which is
neither the task nor the anchors. Of the corpus's facts, the pre-trained model knows 89.1 %.

| run | seeds | task, clean | drift | facts kept |
|---|---|---|---|---|
{rows}

Mean ± standard deviation over the seeds.

## Anchored against plain

| method | seeds | task, difference | drift, difference | facts kept, difference | drift that is left |
|---|---|---|---|---|---|
{paired}

With Student's 95 % intervals of the differences seed by seed, not corrected for the number of cells. They cover these seeds and
this test set alone.

## Budgets

`budget` in place of a fixed weight, with `control: 512`. The drift reached is measured on 512 generated anchors that were neither
trained on nor used to steer, ± its standard error. A drift above the budget is taken off at the end by keeping a
part of the change.

{within}

| method | budget | seed | reached | part kept | task, clean | final weight |
|---|---|---|---|---|---|---|
{budgets}
"""


if __name__ == "__main__":
    main()
