"""An exported LoRA is W + (lora_alpha / r) B A in every layer: the only formula that every server knows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import balora
from balora.exporting.weights import PREFIX
from balora.methods import METHODS
from balora.methods.layers.peft_lora import lora_layers
from bench import UNROUNDED
from export_cases import LOW_RANK, MAKERS, cases, trained
from tiny import tiny_bart, tiny_llama

ALPHA = 6
"""Over the rank of 4, no power of two, so that a forgotten or doubled factor is seen."""


def changes(folder: Path) -> dict[str, np.ndarray]:
    """Return (lora_alpha / r) B A by the name of the weight, from the files of a LoRA alone."""
    config = json.loads((folder / "adapter_config.json").read_text())
    assert not config["use_rslora"] and not config["rank_pattern"] and not config["alpha_pattern"]
    assert config["lora_alpha"] == config["r"] and isinstance(config["r"], int)
    state, found = load_file(folder / "adapter_model.safetensors"), {}
    for key, a in state.items():
        name = key.removeprefix(PREFIX).replace(".lora_embedding_A", ".weight").replace(".lora_A.weight", ".weight")
        if name == key.removeprefix(PREFIX):
            continue
        b = state[key.replace("lora_A", "lora_B").replace("lora_embedding_A", "lora_embedding_B")]
        assert a.shape[0] == b.shape[1] == config["r"], "a server allocates one rank for all layers"
        delta = config["lora_alpha"] / config["r"] * b.astype(np.float64) @ a.astype(np.float64)
        found[name] = delta.T if config["fan_in_fan_out"] or "lora_embedding" in key else delta
    return found


def check_files(make, model, teacher, folder: Path) -> None:
    """Compare W plus the change of the LoRA's files with the merged files, in every layer."""
    make().save_pretrained(folder / "base")
    for to in ("lora", "merged"):
        balora.export(model, to=to, output=folder / to, initial=teacher)
    base, merged = load_file(folder / "base" / "model.safetensors"), load_file(folder / "merged" / "model.safetensors")
    adapter = load_file(folder / "lora" / "adapter_model.safetensors")
    found = changes(folder / "lora")
    moved = {name for name, value in base.items() if not np.array_equal(value, merged[name])}
    assert found and moved - set(found) <= {name for name in base if name.startswith(("classifier", "score"))}
    for name, change in found.items():
        expected, weight = merged[name], base[name] + change
        magnitude = adapter.get(f"{PREFIX}{name.removesuffix('.weight')}.lora_magnitude_vector")
        if magnitude is not None:
            axis = 0 if json.loads((folder / "lora" / "adapter_config.json").read_text())["fan_in_fan_out"] else 1
            weight = weight * np.expand_dims(magnitude, axis) / np.linalg.norm(weight, axis=axis, keepdims=True)
        size = np.abs(expected - base[name]).max()
        assert np.abs(weight - expected).max() <= 1e-4 * size + 1e-6, name


PLAIN_LAYERS = [(family, method) for family, method in cases(LOW_RANK) if family != "mixtral" and method in UNROUNDED]


@pytest.mark.parametrize(("family", "method"), [*PLAIN_LAYERS, ("gpt2", "rslora"), ("bert", "rslora")])
def test_the_files_of_a_lora_give_the_merged_weights(family, method, tmp_path):
    model, teacher, _ = trained(MAKERS[family], method, alpha=ALPHA)
    check_files(MAKERS[family], model, teacher, tmp_path)


@pytest.mark.parametrize("make", [tiny_llama, tiny_bart])
def test_uneven_ranks_are_padded_with_zeros(make, tmp_path):
    model, teacher, _ = trained(make, "adalora", alpha=ALPHA)
    (first, one), (_, other), *_ = lora_layers(model)
    with torch.no_grad():
        one.lora_E["default"].zero_()
        other.lora_E["default"][1:] = 0
    check_files(make, model, teacher, tmp_path)
    assert f"{first}.weight" not in changes(tmp_path / "lora")


@pytest.mark.parametrize("method", ["rslora", "pissa"])
def test_the_files_of_a_lora_give_the_merged_experts(method, tmp_path):
    model, teacher, _ = trained(MAKERS["mixtral"], method, alpha=ALPHA)
    MAKERS["mixtral"]().save_pretrained(tmp_path / "base")
    for to in ("lora", "merged"):
        balora.export(model, to=to, output=tmp_path / to, initial=teacher)
    state = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    base, merged = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "merged"))
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    for inner, weights in (("experts.base_layer", ("w1", "w3")), ("experts", ("w2",))):
        prefix = f"{PREFIX}model.layers.0.mlp.{inner}"
        a, b = state[f"{prefix}.lora_A.weight"], state[f"{prefix}.lora_B.weight"]
        for expert in range(4):
            names = [f"model.layers.0.block_sparse_moe.experts.{expert}.{name}.weight" for name in weights]
            moved = np.concatenate([merged[name] for name in names]) - np.concatenate([base[name] for name in names])
            # peft stores A as (experts, rank) × inputs, and B as outputs × (rank, experts).
            factors = b.reshape(len(b), -1, 4)[:, :, expert], a.reshape(4, -1, a.shape[1])[expert]
            change = config["lora_alpha"] / config["r"] * (factors[0] @ factors[1])
            assert np.abs(change - moved).max() <= 1e-4 * np.abs(moved).max() + 1e-6, names


@pytest.mark.parametrize("method", ["lora", "rslora"])
def test_an_adapted_embedding_has_its_scaling_in_the_factors(method, tmp_path):
    model, teacher, _ = trained(tiny_llama, method, alpha=ALPHA, target_modules=["embed_tokens", "q_proj"])
    check_files(tiny_llama, model, teacher, tmp_path)
    assert "model.embed_tokens.weight" in changes(tmp_path / "lora")


@pytest.mark.parametrize(
    ("method", "bits"),
    [(name, 4) for name in LOW_RANK if name not in UNROUNDED] + [("rslora", 8), ("cordapp", 8), ("lora", 4)],
)
def test_the_files_of_a_lora_from_quantized_weights_give_the_change(method, bits, tmp_path):
    assert "bits" in METHODS[method].options
    model, teacher, _ = trained(tiny_llama, method, alpha=ALPHA, bits=bits)
    balora.export(model, to="lora", output=tmp_path / "lora", initial=teacher)
    found = changes(tmp_path / "lora")

    def deltas() -> dict[str, np.ndarray]:
        layers = lora_layers(model)
        return {f"{name}.weight": layer.get_delta_weight("default").detach().double().numpy() for name, layer in layers}

    after = deltas()
    with teacher.active():
        before = deltas() if METHODS[method].residual_base else {name: 0 * value for name, value in after.items()}
    assert set(found) == set(after)
    for name, change in found.items():
        expected = after[name] - before[name]
        assert np.abs(change - expected).max() <= 1e-4 * np.abs(expected).max(), name


def test_factors_in_half_precision_are_scaled_without_rounding(tmp_path):
    model, teacher, _ = trained(tiny_llama, "lora", alpha=ALPHA)
    model = model.bfloat16()
    balora.export(model, to="lora", output=tmp_path / "lora", initial=teacher)
    found = changes(tmp_path / "lora")
    for name, layer in lora_layers(model):
        exact = layer.scaling["default"] * (
            layer.lora_B["default"].weight.double() @ layer.lora_A["default"].weight.double()
        )
        assert np.allclose(found[f"{name}.weight"], exact.detach().numpy(), rtol=1e-5, atol=1e-9)


def test_an_untrained_adalora_is_a_lora_of_zeros(tmp_path):
    model = balora.adapt(tiny_llama(), "adalora", rank=2, total_steps=10)
    report = balora.export(model, to="lora", output=tmp_path / "lora")
    assert report.rank == 1 and report.largest_difference == 0
    assert all(not change.any() for change in changes(tmp_path / "lora").values())
