"""A comparison whose runs are not trained: what the comparison itself costs.

As a script, `simulated_sweep.py RUNS` prints the CPU time and the memory of the comparison's process for that many runs. All of its
bookkeeping is real (plan, configs, logs, rows, items, tables, intervals); a run is a process that ends at once, with a result.
"""

from __future__ import annotations

import json
import random
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from balora.experiments.compare import Variant, compare
from balora.experiments.compare.engines import Task

CONFIG = {
    "model": "model", "task": "classification", "data": {"train": "train.jsonl", "text": "text", "label": "label", "eval": 0.1},
    "method": {"rank": 4}, "training": {"max_steps": 2},
}  # fmt: skip
SEEDS = [0, 1, 2, 3, 4]
ITEMS = 200
"""Evaluation rows of a run."""
RECORD = (
    Path(__file__).parents[1] / "fixtures" / "kept_runs" / "comparison-compare" / "runs" / "lora_seed-1" / "run.json"
)


class SimulatedEngine:
    """Engine whose runs end at once, with a made-up result of a real run's size. ``seconds`` is the CPU time of making these."""

    jobs = 1

    def __init__(self) -> None:
        self.record = json.loads(RECORD.read_text())
        self.seconds = 0.0

    def __call__(self, tasks: Sequence[Task], started: Callable[[Task], None]) -> Iterator[tuple[Task, int]]:
        for task in tasks:
            started(task)
            begun = time.process_time()
            self._run(task)
            self.seconds += time.process_time() - begun
            yield task, 0

    def _run(self, task: Task) -> None:
        run = task.config.parent.parent / "runs" / task.config.stem
        draws = random.Random(task.config.stem)
        labels = [number % 2 for number in range(ITEMS)]
        predicted = [label if draws.random() < 0.8 else 1 - label for label in labels]
        accuracy = sum(a == b for a, b in zip(labels, predicted, strict=True)) / ITEMS
        metrics = {"eval_accuracy": accuracy, "eval_loss": draws.random(), "train_loss": 1.0, "train_runtime": 1.0}
        run.mkdir(parents=True)
        record = {**self.record, "status": "finished", "metrics": {**metrics, "peak_memory_mib": 512.0}}
        (run / "run.json").write_text(json.dumps(record))
        items = {"kind": "classes", "ids": [f"{n:012x}" for n in range(ITEMS)], "label": labels, "predicted": predicted}
        (run / "items.json").write_text(json.dumps(items))
        shutil.copy(task.config, run / "config.yaml")


def sweep(directory: Path, runs: int, engine: SimulatedEngine | None = None) -> float:
    """Compare two methods at ``runs / 10`` learning rates with five seeds; return the CPU seconds of the comparison itself."""
    engine = engine or SimulatedEngine()
    begun, before = time.process_time(), engine.seconds
    rates = [1e-6 * (number + 1) for number in range(runs // (2 * len(SEEDS)))]
    variants = [Variant.parse("lora"), Variant.parse("balora")]
    axes = {"training.learning_rate": rates}
    made = compare(CONFIG, variants, SEEDS, axes=axes, baseline="lora", output=directory, engine=engine)
    assert len(made.rows) == runs and not made.failures
    return time.process_time() - begun - (engine.seconds - before)


if __name__ == "__main__":
    number = int(sys.argv[1])
    with tempfile.TemporaryDirectory() as temporary:
        lines = [
            ("new", sweep(Path(temporary) / "sweep", number)),
            ("finished", sweep(Path(temporary) / "sweep", number)),
        ]
        for kind, used in lines:
            print(f"{number} runs, {kind}: {used:.1f} s of CPU, {1000 * used / number:.2f} ms per run")
        if "report" in sys.argv[2:]:
            from balora.report.page import report

            at = time.process_time()
            report(Path(temporary) / "sweep")
            print(f"report: {time.process_time() - at:.1f} s")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
