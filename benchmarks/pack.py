"""The frontier of a real model on one card: task loss against drift, over methods, settings and seeds.

`python benchmarks/pack.py --model … --data … --work …` is a part of `gpu_session.py`. Steps of a small model spend their time
in launching kernels, so several worker processes share the card. One row a run; runs that ``--done`` has are not run again.
The change of a finished plain run is also scaled, W + a ΔW, which costs an evaluation and no training.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import copy
import dataclasses
import json
import multiprocessing
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainingArguments

import balora
from balora.data.collate import CausalCollator
from balora.methods import find_method
from balora.models.adapted_model import ADAPTER
from result_rows import Rows
from session_inputs import DEVICE, Inputs, argument_parser, prepare
from task_and_drift import TaskAndDrift

RATES = {"lora": 1e-3, "pissa": 3e-4, "balora": 3e-4, "dft": 1e-3, "asft": 1e-3}
"""Learning rates at which the prototypes learnt this task; dft and asft have LoRA's."""
SCALES = (0.25, 0.5, 0.75)
SEEDS = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One run of the frontier."""

    method: str
    seed: int
    consistency: float | None = None
    """Weight of the paper's consistency; None is the printed one."""
    anchor: float | None = None
    """Weight of the anchors; None without."""

    @property
    def curve(self) -> str:
        """Name of the curve that the run is a point of."""
        changed = "" if self.consistency is None else f", consistency {self.consistency:g}"
        return f"{self.method}{changed}" + ("" if self.anchor is None else " anchored")

    @property
    def key(self) -> str:
        """Name of the run, to find it among finished ones."""
        return f"{self.curve} {self.anchor or 0:g} seed {self.seed}"


def plan(seeds: int, anchor_weights: tuple[float, ...]) -> list[Run]:
    """Return all runs, seed by seed, so that a session that is cut short has whole seeds."""
    runs = []
    for seed in range(seeds):
        runs += [Run(method=method, seed=seed) for method in ("lora", "pissa", "balora")]
        runs.append(Run(method="balora", seed=seed, consistency=0.2))
        runs += [Run(method=m, seed=seed, anchor=w) for w in anchor_weights for m in ("lora", "pissa")]
        runs += [Run(method=method, seed=seed) for method in ("dft", "asft")]
    return runs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """Settings that all workers share."""

    inputs: Inputs
    steps: int
    counts: tuple[int, int]
    questions: int
    anchors: Path
    deadline: float


class Worker:
    """The pre-trained model and the measurements of one process."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.inputs = setting, setting.inputs
        torch.set_num_threads(1 if DEVICE == "cpu" else 2)
        self.base = self.inputs.load("float32" if DEVICE == "cpu" else "bfloat16")
        self.meter = TaskAndDrift(self.inputs, self.base, setting.counts)
        self.rows = self.inputs.rows("train")
        self.start: dict[str, Tensor] | None = None
        """Initial values of PiSSA and BA-LoRA, which all seeds share."""

    def run(self, run: Run) -> list[dict[str, Any]]:
        """Train and measure a run; return its rows."""
        if DEVICE == "cuda":
            torch.cuda.reset_peak_memory_stats()
        begun = time.perf_counter()
        rank = 4 if self.inputs.tiny else 16
        decomposes = run.method in ("pissa", "balora")
        own: dict[str, Any] = {"svd": "randomized", "initial": self.start} if decomposes else {}
        model = balora.adapt(copy.deepcopy(self.base), run.method, rank=rank, seed=run.seed, **own)
        trainer = balora.BALoraTrainer(
            model=model, args=self._arguments(run), train_dataset=self.rows, regularization=_regularization(run),
            data_collator=CausalCollator(pad_token_id=self.inputs.tokenizer.pad_token_id),
            processing_class=self.inputs.tokenizer, **self._anchors(run),
        )  # fmt: skip
        if decomposes and self.start is None:
            self.start = {name: value.detach().clone() for name, value in trainer.teacher.initial.items()}
        adapted = time.perf_counter()
        metrics = trainer.train().metrics
        trained = time.perf_counter()
        found = {"curve": run.curve, **dataclasses.asdict(run), "key": run.key, "rate": RATES[run.method],
                 "steps": self.setting.steps, "rank": rank}  # fmt: skip
        measured = self._measured(model)
        first = {
            "kind": "run", **found, "scale": 1.0, **measured, "adapt_seconds": adapted - begun,
            "train_seconds": trained - adapted, "step_seconds": metrics["train_runtime"] / self.setting.steps,
            "seconds": time.perf_counter() - begun,
            "peak_mib": torch.cuda.max_memory_allocated() / 2**20 if DEVICE == "cuda" else None,
            "logged": {name: value for name, value in metrics.items() if name.startswith(("anchor", "train_loss"))},
        }  # fmt: skip
        if self.setting.questions:
            first["accuracy"] = self._accuracy(model)
        rows = [first]
        if run.anchor is None and run.method in ("lora", "pissa"):
            for scale in SCALES:
                with scaled(model, trainer.teacher.initial, scale):
                    rows.append(
                        {
                            "kind": "run",
                            **found,
                            "curve": f"{run.curve} scaled",
                            "scale": scale,
                            **self._measured(model),
                        }
                    )
        return rows

    def before(self) -> dict[str, Any]:
        """Return the row of the pre-trained model."""
        loss, drift = self.meter.loss(self.base), self.meter.drift(self.base)
        # The tokens of each document, with which the means of documents are weighted.
        counts = {"loss": loss.tokens, "drift": drift.tokens}
        row: dict[str, Any] = {"kind": "before", "loss": loss.row(), "counts": counts}
        return {**row, "accuracy": self._accuracy(self.base)} if self.setting.questions else row

    def sample_anchors(self, count: int, tokens: int) -> dict[str, Any]:
        """Let the pre-trained model write the anchors of all runs; return what they are like."""
        from balora.anchoring.sampling import is_degenerate, sample_sequences

        begun, rows, path = time.perf_counter(), [], self.setting.anchors
        try:
            rows = sample_sequences(self.base, self.inputs.tokenizer, count, tokens, seed=0, batch_size=128)
        finally:  # also after an error, because the runs wait for the file
            path.with_suffix(".tmp").write_text(json.dumps(rows))
            os.replace(path.with_suffix(".tmp"), path)
        loops = sum(is_degenerate(list(row["input_ids"])) for row in rows)
        length = sum(len(row["input_ids"]) for row in rows) / len(rows)
        return {
            "kind": "anchors",
            "rows": len(rows),
            "mean_tokens": length,
            "loops": loops,
            "seconds": time.perf_counter() - begun,
        }

    def _measured(self, model: nn.Module) -> dict[str, Any]:
        return {"loss": self.meter.loss(model).row(), "drift": self.meter.drift(model).row()}

    def _arguments(self, run: Run) -> TrainingArguments:
        return TrainingArguments(
            str(self.inputs.work / "pack" / run.key.replace(" ", "-")), max_steps=self.setting.steps,
            learning_rate=RATES[run.method], lr_scheduler_type="cosine", warmup_steps=5, weight_decay=0.0,
            per_device_train_batch_size=2 if self.inputs.tiny else 8, seed=run.seed, logging_steps=20, report_to=[],
            save_strategy="no", disable_tqdm=True, remove_unused_columns=False, label_names=["labels"],
        )  # fmt: skip

    def _anchors(self, run: Run) -> dict[str, Any]:
        if run.anchor is None:
            return {}
        while not self.setting.anchors.is_file() and time.time() < self.setting.deadline:
            time.sleep(0.1)
        rows = json.loads(self.setting.anchors.read_text())
        return {"anchors": balora.Anchors(rows=rows, weight=run.anchor, share=0.25)}

    @torch.no_grad()
    def _accuracy(self, model: nn.Module) -> float:
        """Return the share of test questions that the model answers with the right number after ``####``."""
        tokenizer, rows = self.inputs.tokenizer, list(self.inputs.rows("test", self.setting.questions))
        prompts = [[t for t, label in zip(r["input_ids"], r["labels"], strict=True) if label == -100] for r in rows]
        width = max(map(len, prompts))
        padded = [[tokenizer.pad_token_id] * (width - len(p)) + p for p in prompts]
        mask = [[0] * (width - len(p)) + [1] * len(p) for p in prompts]
        ids, mask = (torch.tensor(value, device=DEVICE) for value in (padded, mask))
        model.eval()
        written = model.generate(  # type: ignore[operator]
            input_ids=ids, attention_mask=mask, do_sample=False, use_cache=True,
            max_new_tokens=16 if self.inputs.tiny else 200, pad_token_id=tokenizer.pad_token_id,
        )[:, width:]  # fmt: skip
        wanted = [_number(tokenizer.decode([t for t in row["labels"] if t != -100])) for row in rows]
        given = [_number(text) for text in tokenizer.batch_decode(written)]
        return sum(a is not None and a == b for a, b in zip(given, wanted, strict=True)) / len(rows)


@contextlib.contextmanager
def scaled(model: nn.Module, initial: Mapping[str, Tensor], scale: float) -> Iterator[None]:
    """Scale the change that training made, for any LoRA: a·BA + (1 − a)·B₀A₀, as one product of twice the rank."""
    kept = []
    for name, layer in model.named_modules():
        if ADAPTER not in getattr(layer, "lora_A", {}):
            continue
        factors = [getattr(layer, part)[ADAPTER] for part in ("lora_A", "lora_B")]
        first_a, first_b = (initial[f"{name}.{part}.{ADAPTER}.weight"].to(DEVICE) for part in ("lora_A", "lora_B"))
        now_a, now_b = (factor.weight for factor in factors)
        kept.append((factors, now_a, now_b))
        factors[0].weight = nn.Parameter(torch.cat([now_a.detach(), first_a]), requires_grad=False)
        both = torch.cat([scale * now_b.detach(), (1 - scale) * first_b], dim=1)
        factors[1].weight = nn.Parameter(both, requires_grad=False)
    try:
        yield
    finally:
        for factors, now_a, now_b in kept:
            factors[0].weight, factors[1].weight = now_a, now_b


def _number(text: str) -> str | None:
    found = re.search(r"####\s*(-?[\d,.]*\d)", text)
    return None if found is None else found[1].replace(",", "")


def _regularization(run: Run) -> balora.RegularizationConfig:
    if run.method != "balora":
        return balora.RegularizationConfig.of_objective(find_method(run.method).objective)
    changes = {} if run.consistency is None else {"consistency": run.consistency}
    return balora.RegularizationConfig.for_generation(**changes)


_worker: Worker | None = None


def _start(setting: Setting) -> None:
    global _worker
    import transformers

    transformers.utils.logging.disable_progress_bar()
    _worker = Worker(setting)


def _call(setting: Setting, name: str, *arguments: Any) -> list[dict[str, Any]]:
    """Call a method of this process's worker; past the deadline do nothing."""
    if time.time() > setting.deadline:
        return []
    if _worker is None:
        _start(setting)
    assert _worker is not None
    found = getattr(_worker, name)(*arguments)
    return found if isinstance(found, list) else [found]


def measure(rows: Rows, setting: Setting, runs: list[Run], workers: int, anchors: int) -> None:
    """Sample the anchors, then train and measure every run in the workers, as long as there is time."""
    context, waiting = multiprocessing.get_context("spawn"), {}
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        if any(run.anchor is not None for run in runs):
            tokens = 24 if setting.inputs.tiny else 128
            waiting[pool.submit(_call, setting, "sample_anchors", anchors, tokens)] = "anchors"
        if not any(row["kind"] == "before" for row in rows.rows):
            waiting[pool.submit(_call, setting, "before")] = "before"
        waiting |= {pool.submit(_call, setting, "run", run): run.key for run in runs}
        for future in concurrent.futures.as_completed(waiting):
            try:
                for row in future.result():
                    rows.add(workers=workers, **row)
            except Exception as error:
                status = f"failed: {type(error).__name__}: {str(error)[:400]}"
                rows.add(kind="failure", key=waiting[future], status=status)


def main() -> None:
    """Parse the arguments and measure."""
    parser = argument_parser(__doc__)
    parser.add_argument("--workers", type=int, help="processes that share the card; default 7, with --tiny 1")
    parser.add_argument("--seeds", type=int, help=f"default {SEEDS}, with --tiny 1")
    parser.add_argument("--steps", type=int, help="steps of a run; default 80, with --tiny 3")
    parser.add_argument("--questions", type=int, default=0, help="GSM8K questions to answer after each run")
    parser.add_argument("--weights", type=float, nargs="*", help="weights of the anchors; default 1 5 20")
    parser.add_argument("--seconds", type=float, default=3600.0, help="start no run after this time")
    parser.add_argument("--done", type=Path, help="rows of an earlier session, pack.jsonl")
    _run(parser.parse_args())


def _run(given: argparse.Namespace) -> None:
    inputs, rows = prepare(given), Rows("pack", given.output)
    if given.done and given.done.is_file():
        rows.rows = [row for row in map(json.loads, given.done.read_text().splitlines()) if row["status"] == "ok"]
    finished = {row["key"] for row in rows.rows if row["kind"] == "run"}
    weights = tuple(given.weights) if given.weights is not None else (5.0,) if given.tiny else (1.0, 5.0, 20.0)
    if not hasattr(balora, "Anchors"):
        rows.add(kind="skipped", status="skipped: this balora has no anchors yet")
        weights = ()
    runs = [r for r in plan(given.seeds or (1 if given.tiny else SEEDS), weights) if r.key not in finished]
    setting = Setting(
        inputs=inputs, steps=given.steps or (3 if given.tiny else 80), counts=(6, 6) if given.tiny else (200, 64),
        questions=given.questions, anchors=inputs.work / "anchors.json", deadline=time.time() + given.seconds,
    )  # fmt: skip
    setting.anchors.unlink(missing_ok=True)
    begun = time.perf_counter()
    measure(rows, setting, runs, given.workers or (1 if given.tiny else 7), 16 if given.tiny else 256)
    rows.add(kind="total", planned=len(runs), seconds=time.perf_counter() - begun)


if __name__ == "__main__":
    main()
