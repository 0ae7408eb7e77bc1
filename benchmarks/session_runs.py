"""The parts of `cuda_only.py` that run the command: resume with dropout, 4 bits, FSDP, and the estimate of memory."""

from __future__ import annotations

import concurrent.futures
import gc
import json
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers

import balora
from balora.checkpoints.checkpoint import read_tensors
from balora.config.run_config import load_run_config
from balora.estimation.validate import validate
from balora.training.callbacks import read_metrics
from balora.training.run import prepare as prepare_run
from result_rows import Rows
from session_inputs import DEVICE, Inputs, command, train_killed, write_config

ONE_B = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
         "num_key_value_heads": 4}  # fmt: skip
"""Sizes of a model of a billion parameters, beside the vocabulary and the tokenizer of the given one."""


def random_state(inputs: Inputs, rows: Rows) -> None:
    """Train with dropout: twice without interruption and once killed and resumed, as it is and deterministically."""
    steps, saved = (8, 4) if inputs.tiny else (40, 10)
    for deterministic in (False,) if inputs.tiny else (False, True):
        training: dict[str, Any] = {"save_strategy": "steps", "save_steps": saved, "full_determinism": deterministic}
        kind = "deterministic" if deterministic else "default"

        def fresh(name: str, training: dict[str, Any] = training, kind: str = kind) -> tuple[Path, Path]:
            name = f"dropout-{kind}-{name}"
            run = inputs.work / "runs" / name
            shutil.rmtree(run, ignore_errors=True)
            return write_config(inputs, name, steps=steps, method={"dropout": 0.1}, training=training), run

        runs = {name: fresh(name) for name in ("once", "again", "killed")}
        with concurrent.futures.ThreadPoolExecutor(1 if DEVICE == "cpu" else 3) as pool:
            waiting = [pool.submit(command, "train", runs[name][0]) for name in ("once", "again")]
            found = pool.submit(train_killed, *runs["killed"], saved).result()
            for run in waiting:
                run.result()
        again, killed = (_difference(runs["once"][1], runs[name][1]) for name in ("again", "killed"))
        rows.add(
            kind="random_state", kernels=kind, dropout=0.1, steps=steps, **found, resumed_difference=killed,
            repeated_difference=again, bitwise=killed == 0.0,
            within=found["killed_at"] is not None and (killed == 0.0 or killed <= 2 * again),
        )  # fmt: skip


def four_bits(inputs: Inputs, rows: Rows) -> None:
    """Train BA-LoRA with weights in 4 bits, export it and load it."""
    steps = 6 if inputs.tiny else 30
    config = write_config(inputs, "four-bits", steps=steps, method={"name": "qbalora"})
    run, exported = inputs.work / "runs" / "four-bits", inputs.work / "exports" / "four-bits"
    for folder in (run, exported):
        shutil.rmtree(folder, ignore_errors=True)
    command("train", config)
    said = command("export", run, "--to", "lora", "--output", exported)
    losses, record = _losses(run), json.loads((run / "run.json").read_text())
    model = balora.load(run).to(DEVICE)
    batch = inputs.collate(inputs.rows("train", 4))
    with torch.no_grad():
        loaded = float(model(**batch).loss)
    layers = sum(type(module).__name__ == "Linear4bit" for module in model.modules())
    size = steps // 3
    first, last = sum(losses[:size]) / size, sum(losses[-size:]) / size
    rows.add(
        kind="four_bits", steps=steps, layers=layers, first_loss=first, last_loss=last, loaded_loss=loaded,
        step_seconds=record["metrics"]["train_runtime"] / steps, peak_mib=record["metrics"]["peak_memory_mib"],
        said=said.strip()[-300:], within=layers > 0 and last < first and loaded == loaded,
    )  # fmt: skip


def fsdp(inputs: Inputs, rows: Rows) -> None:
    """Train under FSDP version 2 in one process of torchrun, and without it."""
    steps, runs = 4 if inputs.tiny else 12, {}
    sharded: dict[str, Any] = {"fsdp": True, "fsdp_config": {"version": 2}}
    processes = 1
    if DEVICE == "cpu":  # transformers refuses FSDP for one process on a CPU, and accelerate does not shard there
        sharded, processes = {**sharded, "use_cpu": True}, 2
    batch = (2 if inputs.tiny else 8) // processes
    for name, training in (
        ("unsharded", {}),
        ("fsdp", {**sharded, "per_device_train_batch_size": batch}),
    ):
        runs[name] = inputs.work / "runs" / name
        shutil.rmtree(runs[name], ignore_errors=True)
        launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", "29611", "-m"]
        config = write_config(inputs, name, steps=steps, training=training)
        command("train", config, launcher=launcher if training else ("-m",))
    ours, theirs = _losses(runs["unsharded"]), _losses(runs["fsdp"])
    off = max(abs(a - b) / abs(a) for a, b in zip(ours, theirs, strict=True))
    seconds = {
        name: json.loads((run / "run.json").read_text())["metrics"]["train_runtime"] / steps
        for name, run in runs.items()
    }
    rows.add(
        kind="fsdp", steps=steps, processes=processes, sharded=DEVICE == "cuda", loss_difference=off,
        weights_difference=_difference(*runs.values()), step_seconds=seconds, bound=0.02, within=off <= 0.02,
    )  # fmt: skip


def memory(inputs: Inputs, rows: Rows) -> None:
    """Compare the estimate of `balora validate` with the allocator's peak over a few steps of full-length rows."""
    longest = _full_rows(inputs)
    wide = inputs.work / "models" / "one-billion"
    _random_model(inputs, wide)
    for name, model in (("given", inputs.model), ("1B-shaped", wide)):
        for checkpointing in (False, True):
            training = {"gradient_checkpointing": checkpointing}
            # A start of PiSSA takes the same memory, and decomposes a billion weights on the CPU first.
            method = {"name": "lora"}
            path = write_config(
                inputs, "memory", data=longest, steps=4, training=training, method=method, model=str(model),
                regularization="on",
            )  # fmt: skip
            config = load_run_config(path)
            shutil.rmtree(config.output, ignore_errors=True)
            estimate = validate(config).estimate
            assert estimate is not None
            estimated = estimate.peak_gib * 1024
            _reset_peak()
            trainer = prepare_run(config)[0]
            preparing = _peak()
            _reset_peak()
            trainer.train()
            training_mib = _peak()
            ratio = estimated / training_mib if training_mib else None
            rows.add(
                kind="memory", model=name, parameters=estimate.parameters, checkpointing=checkpointing,
                estimated_mib=estimated, parts={"weights": estimate.weights_gib, "training": estimate.training_gib,
                "activations": estimate.activations_gib}, measured_mib=training_mib, preparing_mib=preparing,
                reserved_mib=torch.cuda.max_memory_reserved() / 2**20 if DEVICE == "cuda" else None, ratio=ratio,
                within=None if ratio is None else abs(ratio - 1) <= 0.1,
            )  # fmt: skip
            del trainer
            gc.collect()


def _full_rows(inputs: Inputs) -> str:
    """Write rows that are all cut at the same length, so that every batch is as large as the estimate's longest one."""
    rows = [json.loads(line) for line in (inputs.data / "train.jsonl").read_text().splitlines()]
    for row in rows:
        last = row["messages"][-1] if "messages" in row else row
        key = "content" if "messages" in row else "response"
        last[key] = " ".join([last[key]] * 60)
    (inputs.data / "full.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:64]))
    return "full"


def _random_model(inputs: Inputs, folder: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(inputs.model)
    for name, value in ({} if inputs.tiny else ONE_B).items():
        setattr(config, name, value)
    config.head_dim = config.hidden_size // config.num_attention_heads
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(DEVICE):
            model = transformers.AutoModelForCausalLM.from_config(config)
    finally:
        torch.set_default_dtype(before)
    model.save_pretrained(folder)
    inputs.tokenizer.save_pretrained(folder)


def _losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run / "metrics.jsonl") if "loss" in line]


def _difference(a: Path, b: Path) -> float:
    """Return the relative difference of two runs' trained tensors; 0 only if they are bitwise equal."""
    first, second = (read_tensors(run / "adapter" / "adapter_model.safetensors") for run in (a, b))
    if all(torch.equal(first[name], second[name]) for name in first):
        return 0.0
    squares = sum(float((first[n].double() - second[n].double()).square().sum()) for n in first)
    start = read_tensors(a / "adapter" / "initial.safetensors")
    moved = sum(float((first[n].double() - start[n].double()).square().sum()) for n in first if n in start)
    return (squares / moved) ** 0.5 if moved else squares**0.5


def _reset_peak() -> None:
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _peak() -> float | None:
    return torch.cuda.max_memory_allocated() / 2**20 if DEVICE == "cuda" else None
