"""Model, data and configs of the parts of `gpu_session.py`, and the commands that the parts start.

`--model` is a folder with a causal language model, `--data` one with ``gsm8k/{train,test}.jsonl`` and
``instruct/llamafactory_alpaca_en_demo.json``. Without them `--tiny` takes the packaged model and sums of two numbers.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import balora
from balora.checkpoints.checkpoint import newest_checkpoint
from balora.config.run_config import RunConfig
from balora.data.collate import CausalCollator, ensure_pad_token
from balora.data.examples import load_examples
from balora.data.tokenize import tokenize_examples

SOURCE = Path(balora.__file__).parents[1]
PACKAGED = SOURCE / "balora" / "experiments" / "quickstart" / "assets" / "model"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SECTIONS = ("train", "test", "drift")
KEPT = (1700, 400, 200)
"""Rows of each that are prepared: every process tokenizes them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """Model, data and sizes that every part uses."""

    model: Path
    data: Path
    """Folder of the prepared rows: ``train.jsonl``, ``test.jsonl`` (GSM8K) and ``drift.jsonl`` (alpaca)."""
    work: Path
    tiny: bool

    @property
    def length(self) -> int:
        """Maximum tokens of a row."""
        return 96 if self.tiny else 384

    @property
    def dtype(self) -> str:
        """Dtype of the frozen weights."""
        return "bfloat16"

    @functools.cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer, with a pad token."""
        tokenizer = transformers.AutoTokenizer.from_pretrained(self.model)
        ensure_pad_token(tokenizer)
        return tokenizer

    def load(self, dtype: str = "bfloat16", **options: Any) -> PreTrainedModel:
        """Load the model to the device."""
        model = transformers.AutoModelForCausalLM.from_pretrained(self.model, dtype=getattr(torch, dtype), **options)
        return model.to(DEVICE).eval()

    def data_section(self, name: str = "train") -> dict[str, Any]:
        """Return the ``data`` section of a config that reads one of the prepared files."""
        columns = (
            {"messages": "messages"} if self.tokenizer.chat_template else {"prompt": "prompt", "response": "response"}
        )
        return {"train": str(self.data / f"{name}.jsonl"), **columns, "max_length": self.length}

    def rows(self, name: str, count: int | None = None) -> Dataset:
        """Return tokenized rows of one of the prepared files, as the command makes them."""
        config = RunConfig.from_dict(
            {"model": str(self.model), "task": "generation", "output": "unused", "data": self.data_section(name)}
        )
        rows = tokenize_examples(
            load_examples(config.data, config.task), self.tokenizer, config.data, config.task
        ).train
        return rows if count is None else rows.select(range(min(count, len(rows))))

    def collate(self, rows: Dataset | Sequence[Any]) -> dict[str, torch.Tensor]:
        """Return a batch on the device."""
        batch = CausalCollator(pad_token_id=self.tokenizer.pad_token_id)(list(rows))
        return {name: value.to(DEVICE) for name, value in batch.items()}


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of the arguments that all parts have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try the script on any machine")
    parser.add_argument("--model", type=Path, help="folder of a causal language model (SmolLM2-135M-Instruct)")
    parser.add_argument("--data", type=Path, help="folder with gsm8k/ and instruct/")
    parser.add_argument("--work", type=Path, required=True, help="folder for runs and prepared rows")
    parser.add_argument("--output", type=Path, help="folder for the rows")
    return parser


def prepare(given: argparse.Namespace) -> Inputs:
    """Check the arguments and write the prepared rows."""
    if not given.tiny and not (given.model and given.data):
        raise SystemExit("Give --model and --data, or try the script with --tiny.")
    if DEVICE == "cpu" and not given.tiny:
        raise SystemExit("No GPU here. Try the script with --tiny.")
    inputs = Inputs(model=given.model or PACKAGED, data=given.work / "data", work=given.work, tiny=given.tiny)
    inputs.data.mkdir(parents=True, exist_ok=True)
    found = _sums() if given.data is None else _real(given.data)
    chat = bool(inputs.tokenizer.chat_template)
    for name, pairs in zip(SECTIONS, found, strict=True):
        rows = [_messages(*pair) if chat else dict(zip(("prompt", "response"), pair, strict=True)) for pair in pairs]
        path = inputs.data / f"{name}.jsonl"
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
        os.replace(temporary, path)
    return inputs


Pairs = list[tuple[str, str]]


def _real(folder: Path) -> tuple[Pairs, Pairs, Pairs]:
    def gsm8k(part: str) -> Pairs:
        lines = (folder / "gsm8k" / f"{part}.jsonl").read_text().splitlines()
        return [(row["question"], row["answer"]) for row in map(json.loads, lines)]

    alpaca = json.loads((folder / "instruct" / "llamafactory_alpaca_en_demo.json").read_text())
    drift = [("\n".join(filter(None, (row["instruction"], row["input"]))), row["output"]) for row in alpaca]
    found = gsm8k("train"), gsm8k("test"), [(prompt, answer) for prompt, answer in drift if answer.strip()]
    return tuple(pairs[:most] for pairs, most in zip(found, KEPT, strict=True))  # type: ignore[return-value]


def _sums() -> tuple[Pairs, Pairs, Pairs]:
    numbers = [(a, b) for a in range(16) for b in range(16)]
    pairs = [(f"What is {a} plus {b}?", f"{a} plus {b} is {a + b}.\n#### {a + b}") for a, b in numbers]
    names = [(f"Say {a} and {b}.", f"{a} and {b}, as you wish.") for a, b in numbers]
    return pairs[::2], pairs[1::2], names


def _messages(question: str, answer: str) -> dict[str, Any]:
    turns = (("user", question), ("assistant", answer))
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def write_config(inputs: Inputs, name: str, *, data: str = "train", steps: int, **changes: Any) -> Path:
    """Write the config of a run under ``work`` and return its path. ``changes`` replace or add sections.

    The randomised start takes seconds where the exact one takes a minute: the command computes it on the CPU.
    """
    method = {"name": "balora", "rank": 4 if inputs.tiny else 16, "svd": "randomized", **changes.pop("method", {})}
    if method["name"] == "lora":
        del method["svd"]
    training = {
        "learning_rate": 3e-4, "lr_scheduler_type": "cosine", "warmup_steps": 2, "max_steps": steps,
        "per_device_train_batch_size": 2 if inputs.tiny else 8, "logging_steps": 1, "save_strategy": "no", "report_to": [],
        "disable_tqdm": True, **changes.pop("training", {}),
    }  # fmt: skip
    config = {
        "model": str(inputs.model), "task": "generation", "data": inputs.data_section(data), "method": method,
        "training": training, "dtype": inputs.dtype, "output": str(inputs.work / "runs" / name), **changes,
    }  # fmt: skip
    path = inputs.work / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def command(*arguments: object, launcher: Sequence[str] = ("-m",), check: bool = True) -> str:
    """Run `balora` in a new process and return what it printed; an error has the end of its output."""
    done = subprocess.run(_line(arguments, launcher), capture_output=True, text=True, env=environment(), check=False)
    print(done.stdout[-2000:], done.stderr[-2000:], flush=True)
    if check and done.returncode:
        lines = (done.stderr or done.stdout).splitlines()
        said = [line for line in lines if "Error" in line or line.startswith("balora:")] or lines
        raise RuntimeError(f"balora {arguments[0]} ended with {done.returncode}: {' '.join(said[-3:])[-500:]}")
    return done.stdout


def train_killed(config: Path, run: Path, at: int) -> dict[str, Any]:
    """Train in a new process, kill it as soon as a checkpoint of at least ``at`` steps exists, and resume it.

    Returns:
        The step of the checkpoint that the resumed process continued from; None if the run ended before it was killed.
    """
    process = subprocess.Popen(_line(("train", config), ("-m",)), env=environment(), stdout=subprocess.DEVNULL)
    while process.poll() is None and _step(run) < at:
        time.sleep(0.02)
    alive = process.poll() is None
    if alive:
        process.send_signal(signal.SIGKILL)
    process.wait()
    step = _step(run)
    output = command("train", config)
    return {"killed_at": step if alive and "Resuming" in output else None}


def _step(run: Path) -> int:
    found = newest_checkpoint(run)
    return 0 if found is None else int(found.name.rsplit("-", 1)[1])


def _line(arguments: Sequence[object], launcher: Sequence[str]) -> list[str]:
    return [sys.executable, *launcher, "balora", *map(str, arguments)]


def environment() -> dict[str, str]:
    """Return the environment of a new process that finds this balora and asks no network."""
    paths = os.pathsep.join(filter(None, (str(SOURCE), os.environ.get("PYTHONPATH", ""))))
    return {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def attempt(rows: Any, part: str, work: Callable[[], None]) -> None:
    """Call a part; an exception becomes a row, and the next parts still run."""
    import traceback

    try:
        work()
    except Exception as error:
        rows.add(
            kind=part, status=f"failed: {type(error).__name__}: {str(error)[:600]}", trace=[traceback.format_exc()]
        )
        traceback.print_exc()
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
