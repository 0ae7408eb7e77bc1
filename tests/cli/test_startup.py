"""CPU time of the command: help, lists and mistakes are answered before torch is imported."""

from __future__ import annotations

import itertools
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

import balora


def machine_factor() -> float:
    """Return how many times slower this machine is than the one that the budget was set on; at least 1."""
    begun = time.process_time()
    sum(i * i for i in range(2_000_000))
    return max(1.0, (time.process_time() - begun) / 0.2)


BUDGET = 0.5 * machine_factor()
"""CPU seconds, user and system together."""
CONFIG = "{model: m, task: generation, data: {train: d.jsonl, prompt: p, response: r}, output: run}"
HEAVY = ("torch", "transformers", "peft", "datasets")
SOURCE = str(Path(balora.__file__).resolve().parents[1])


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def answer_in_time(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command up to three times, until one run stays within the budget."""
    times: list[float] = []
    while len(times) < 3 and min(times, default=BUDGET) >= BUDGET:
        before = cpu_seconds()
        outcome = run(folder, "-m", "balora", *arguments)
        times.append(cpu_seconds() - before)
    # The parser needs a quarter of a second for a hundred thousand brackets, before they can be counted.
    budget = 2 * BUDGET if "deep.yaml" in arguments else BUDGET
    assert min(times) < budget, f"balora {' '.join(arguments)} took {min(times):.2f} s of CPU"
    return outcome


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run.yaml").write_text(CONFIG)
    (tmp_path / "broken.yaml").write_text("model: [a")
    (tmp_path / "empty.yaml").write_text("")
    (tmp_path / "deep.yaml").write_text("data: " + "[" * 100_000)
    names = "abcdefghi"
    lines = [f"{new}: &{new} [{', '.join(['*' + old] * 9)}]" for old, new in itertools.pairwise(names)]
    (tmp_path / "bomb.yaml").write_text("\n".join(["a: &a [x, x, x]", *lines]))
    (tmp_path / "axolotl.yaml").write_text(
        "{base_model: m, adapter: lora, lora_r: 8, micro_batch_size: 2, sequence_len: 512}"
    )
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--help"], "Bias-alleviating"),
        (["--version"], f"balora {balora.__version__}"),
        (["train", "--help"], "CONFIG"),
        (["evaluate", "--help"], "pass@k"),
        (["methods"], "pissa"),
        (["methods", "balora"], "method.svd_iterations"),
        (["evaluate", "x", "--tasks", "list"], "gsm8k"),
        (["reproduce", "list"], "table4"),
    ],
)
def test_help_and_lists_are_answered_in_time(folder: Path, arguments: list[str], text: str) -> None:
    outcome = answer_in_time(folder, *arguments)
    assert outcome.returncode == 0, outcome.stderr
    assert text in outcome.stdout


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["trian"], "No such command"),
        (["train"], "Missing argument"),
        (["methods", "pisa"], "Did you mean 'pissa'?"),
        (["compare", "run.yaml", "--methods", "lorra"], "There is no method 'lorra'"),
        (["compare", "run.yaml", "training.learning_rat=1"], "Did you mean 'learning_rate'?"),
        (["reproduce", "tabel4"], "Did you mean 'table4'?"),
        (["train", "absent.yaml"], "There is no config file absent.yaml"),
        (["compare", "absent.yaml"], "There is no config file absent.yaml"),
        (["train", "broken.yaml"], "broken.yaml is not valid YAML"),
        (["train", "empty.yaml"], "empty.yaml is empty"),
        (["train", "bomb.yaml"], "more than 20,000 values"),
        (["validate", "deep.yaml"], "nested more than 50 levels"),
        (["train", "axolotl.yaml"], "looks like a config of axolotl"),
        (["train", "run.yaml", "training.max_steps=1e400"], "training.max_steps must be a whole number, not inf"),
        (["train", "run.yaml", "rank"], "'rank' is not of the form dotted.key=value"),
        (["train", "run.yaml", "outptu=x"], "Did you mean 'output'?"),
        (["train", "run.yaml", "task=generatoin"], "task must be one of"),
        (["validate", "run.yaml", "method.rank=x"], "method.rank must be a whole number, not 'x'"),
        (["train", "run.yaml", "method.name=pisa"], "Did you mean 'pissa'?"),
        (["train", "run.yaml", "method.svd=fast"], "method.svd"),
        (["train", "run.yaml", "method.lr_ratio=4"], "has no option 'lr_ratio'"),
        (["teacher", "run.yaml", "data.label=l"], "data.label is not used"),
        (["train", "run.yaml", "regularization.spectral=-1"], "regularization.spectral must be a number of at least 0"),
        (["train", "run.yaml", "training.learning_rat=1"], "Did you mean 'learning_rate'?"),
        (["train", "run.yaml", "training.learning_rate=fast"], "training.learning_rate must be a number"),
        (["train", "run.yaml", "training.lr_scheduler_type=cosin"], "Did you mean 'cosine'?"),
        (["train", "run.yaml", "training.seed=1"], "is set by the top-level key seed"),
        (["export", "absent", "--to", "lora", "--output", "x"], "There is no folder absent"),
        (["export", "absent", "--to", "gguff", "--output", "x"], "--to must be lora or merged"),
        (["report", "absent"], "There is no folder absent"),
        (["evaluate", "m", "--tasks", "gsm8k", "--data", "x"], "TASK=PATH"),
        (["evaluate", "m", "--tasks", "gsm8k", "--judge-url", "x"], "--judge-model"),
    ],
)
def test_a_mistake_is_answered_in_time(folder: Path, arguments: list[str], text: str) -> None:
    outcome = answer_in_time(folder, *arguments)
    assert outcome.returncode == 2, outcome.stderr
    assert text in " ".join(outcome.stderr.split()), outcome.stderr
    assert "Traceback" not in outcome.stderr


@pytest.mark.parametrize("module", ["balora", "balora.config.run_config", "balora.cli.main", "balora.methods.registry"])
def test_an_import_does_not_import_torch(tmp_path: Path, module: str) -> None:
    code = f"import sys, {module}; print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    outcome = run(tmp_path, "-c", code)
    assert outcome.stdout.strip() == "[]", outcome.stdout + outcome.stderr
