"""QBA-LoRA through the command, on the CPU: validated, trained on real data, exported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

import balora as library

pytest.importorskip("bitsandbytes", reason="bitsandbytes is absent: pip install 'balora[quantization]'")


@pytest.fixture
def settings(shared_dir: Path, stories: Path, tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    data = {
        "train": str(shared_dir / "data/gsm8k/test.jsonl"),
        "prompt": "question",
        "response": "answer",
        "max_length": 96,
    }
    training = {
        "max_steps": 12, "per_device_train_batch_size": 8, "learning_rate": 2e-3, "logging_steps": 4, "use_cpu": True,
        "disable_tqdm": True, "report_to": "none",
    }  # fmt: skip
    values = {
        "model": str(stories),
        "task": "generation",
        "data": data,
        "training": training,
        "output": str(tmp_path / "run"),
    }
    path.write_text(yaml.safe_dump({**values, "method": {"name": "qbalora", "rank": 8}}))
    return path


def test_qbalora_learns_and_is_exported_as_plain_models(balora, settings: Path, tmp_path: Path) -> None:
    found = balora("validate", settings)
    assert found.status == 0 and "rounded to 4 bits after the adapter's initial values" in " ".join(found.out.split())
    assert balora("train", settings).status == 0
    run = tmp_path / "run"
    losses = [
        line["task"] for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "task" in line
    ]
    assert losses[-1] < losses[0] - 0.5
    tokens = torch.randint(3, 500, (2, 30))
    trained = library.load(run)(tokens).logits
    merged = balora("export", run, "--to", "merged", "--output", tmp_path / "merged")
    assert merged.status == 0, merged.err
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(tokens).logits
    assert (plain - trained).abs().max() < 1e-4 * trained.abs().max()
    lora = balora("export", run, "--to", "lora", "--output", tmp_path / "lora")
    assert lora.status == 0, lora.err
    assert "a LoRA of rank 16" in lora.out and "for the base in full precision" in " ".join(lora.out.split())


def test_a_method_without_quantization_is_refused_before_anything_is_loaded(balora, settings: Path) -> None:
    found = balora("validate", settings, "method.name=adalora", "method.bits=4")
    assert found.status == 2 and "Methods that have it: lora, rslora, dora" in " ".join((found.out + found.err).split())
