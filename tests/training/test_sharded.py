"""A run sharded over two processes by FSDP2 equals the run of one: gradients, weights, logs, checkpoints, resumes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import sharded_processes
from balora.checkpoints import checkpoint as ckpt
from balora.errors import BALoraError
from balora.methods import find_method
from balora.models.fsdp import gather_tensors, is_dtensor, is_finite, is_sharded, local_shard, local_slice, reshard
from balora.teacher import logit_cache
from balora.training.trainer_checks import check_sharding
from processes import run_script


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("sharded")
    run_script(Path(sharded_processes.__file__), str(folder), seconds=880)
    return {**json.loads((folder / "report.json").read_text()), "path": folder}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", sharded_processes.RUNS)
def test_a_sharded_run_equals_the_run_of_one_process(name, report):
    found = report[name]
    assert found["gradient"] <= 1e-5
    assert found["weights"] <= 1e-5
    one, sharded = found["logged"]
    for key, values in one.items():
        assert sharded[key] == pytest.approx(values, rel=1e-4, abs=1e-6), key
    assert one["loss"] and one["eval_loss"]
    if name != "full, no teacher":
        assert one["consistency"][0] > 1e-3, "teacher and student differ"


@pytest.mark.slow
@pytest.mark.parametrize("name", sharded_processes.RESUMED)
def test_a_sharded_run_resumes_exactly(name, report):
    assert report[name]["resumed"] <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", sharded_processes.RUNS)
def test_the_checkpoint_of_a_sharded_run_has_unsharded_tensors(name, report):
    folder = report["path"] / "two" / name / "checkpoint-3"
    ckpt.check_manifest(folder)
    assert not any(file.startswith("pytorch_model") for file in report[name]["files"])
    sizes = {}
    for at in ("one", "two"):
        files = sorted((report["path"] / at / name / "checkpoint-3").glob("*.safetensors"))
        # Only a single process caches its teacher's logits.
        files = [file for file in files if file.name != logit_cache.FILE]
        sizes[at] = {f.name: {k: v.shape for k, v in ckpt.read_tensors(f).items()} for f in files}
    assert len(sizes["one"]) >= 2, "trained and initial tensors"
    assert sizes["one"] == sizes["two"]


# -- refused settings -----------------------------------------------------------------------------------------------------


def state(version: int = 2, *, efficient: bool = False, zero: int | None = None) -> SimpleNamespace:
    fsdp = SimpleNamespace(fsdp_version=version, cpu_ram_efficient_loading=efficient) if zero is None else None
    return SimpleNamespace(
        fsdp_plugin=fsdp, deepspeed_plugin=None if zero is None else SimpleNamespace(zero_stage=zero)
    )


def test_supported_sharding_is_accepted():
    for name in ("balora", "lora", "full", "bitfit"):
        check_sharding(state(), nn.Linear(2, 2), find_method(name))
    check_sharding(state(zero=2), nn.Linear(2, 2), find_method("adalora"))
    check_sharding(SimpleNamespace(), nn.Linear(2, 2), find_method("adalora"))


@pytest.mark.parametrize(
    ("states", "method", "message"),
    [
        (state(1), "lora", "FSDP version 1 flattens .* Set fsdp_version: 2"),
        (state(efficient=True), "lora", "cpu_ram_efficient_loading .* to false"),
        (state(zero=3), "lora", "ZeRO stage 3 .* Use FSDP version 2"),
        (
            state(),
            "adalora",
            "'adalora' needs unsharded matrices .* Use another method, or train with one unsharded model",
        ),
        (state(), "loraplus", "'loraplus' needs unsharded matrices"),
    ],
)
def test_unsupported_sharding_is_refused_with_an_alternative(states, method, message):
    with pytest.raises(BALoraError, match=f"(?s){message}"):
        check_sharding(states, nn.Linear(2, 2), find_method(method))


def test_quantized_weights_are_refused_and_all_problems_are_listed():
    model = nn.Linear(2, 2)
    model.is_loaded_in_4bit = True
    with pytest.raises(BALoraError, match=r"(?s)version 1.*Sharding of weights in 4 bits"):
        check_sharding(state(1), model, None)


def test_helpers_leave_unsharded_tensors_unchanged():
    layer = nn.Linear(3, 2)
    assert not is_sharded(layer) and not is_dtensor(layer.weight)
    reshard(layer)
    assert local_shard(layer.weight).data_ptr() == layer.weight.data_ptr()
    value = torch.ones(2, 3)
    assert local_slice(value, layer.weight) is value
    assert gather_tensors([("w", layer.weight)])["w"].tolist() == layer.weight.tolist()
    assert gather_tensors([("w", layer.weight)], keep=False) == {}
    assert is_finite(layer.weight) and not is_finite(torch.tensor([torch.nan]))
