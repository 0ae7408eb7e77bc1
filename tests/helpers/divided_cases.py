"""The verbs other than `train`, in one process and in several: inputs, and a command whose process is killed at its N-th sample.

As a script under torchrun: `divided_cases.py RANK NUMBER ARGUMENTS` is the command in which the process RANK is killed when it
has written NUMBER samples or shards.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import launched
from evaluation_models import classifier_at


def write_inputs(folder: Path, rows: int = 26) -> None:
    """Write models, and rows of GSM8K and SST-2."""
    launched.write_inputs(folder)
    questions = [
        {"question": f"what is {n} plus {n % 7}?" + " please" * (n % 5), "answer": f"#### {n}"} for n in range(rows)
    ]
    (folder / "gsm8k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    sentences = [{"sentence": "a line " * (1 + n % 6), "label": n % 2} for n in range(rows)]
    (folder / "sst2.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sentences))
    classifier_at(folder / "classifier", ["negative", "positive"])


def arguments(folder: Path, output: str) -> list[str]:
    """Return the arguments of an evaluation on GSM8K, with sampled answers."""
    return [
        "evaluate", str(folder / "llama"), "--tasks", "gsm8k", "--data", f"gsm8k={folder / 'gsm8k.jsonl'}", "--output",
        str(folder / output), "--batch-size", "4", "--max-new-tokens", "6", "--temperature", "0.7", "--device", "cpu",
    ]  # fmt: skip


def samples(folder: Path, output: str, task: str = "gsm8k") -> dict:
    """Return the scores and samples of a result, without what differs from call to call."""
    result = json.loads((folder / output / f"{task}.json").read_text())
    return {name: result[name] for name in ("scores", "samples", "identity", "standard_errors")}


def main() -> None:
    from balora.cli.main import main
    from balora.evaluation.results import Journal

    rank, number = sys.argv[1], int(sys.argv[2])
    del sys.argv[1:3]
    if os.environ["RANK"] == rank:
        add, count = Journal.add, 0

        def killed(self, sample, **fields):
            nonlocal count
            add(self, sample, **fields)
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

        Journal.add = killed
    main()


if __name__ == "__main__":
    main()
