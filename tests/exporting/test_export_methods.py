"""Results of every method in the forms of plain peft and plain transformers."""

from __future__ import annotations

import pytest
from peft import PeftModel
from safetensors.torch import load_file

import balora
from balora.methods import METHODS
from balora.methods.layers.peft_lora import lora_layers
from bench import UNROUNDED, logits
from export_cases import LOW_RANK, MAKERS, cases, trained
from tiny import tiny_llama


@pytest.mark.parametrize(("family", "method"), cases([name for name in LOW_RANK if name in UNROUNDED]))
def test_a_lora_loads_in_plain_peft_and_agrees(family, method, tmp_path):
    model, teacher, batch = trained(MAKERS[family], method)
    expected, start = logits(model, batch), logits(MAKERS[family](), batch)
    report = balora.export(model, to="lora", output=tmp_path / "lora", initial=teacher)
    assert (expected - start).abs().max() > 1e-2 * expected.abs().max(), "training moved nothing"
    plain = PeftModel.from_pretrained(MAKERS[family](), tmp_path / "lora")
    assert (logits(plain, batch) - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert report.rank == {"adalora": 4}.get(method, 8 if METHODS[method].residual_base else 4) or method == "cordapp"


@pytest.mark.parametrize(("family", "method"), cases([name for name, method in METHODS.items() if method.mergeable]))
def test_a_merged_model_loads_in_plain_transformers_and_agrees(family, method, tmp_path):
    model, teacher, batch = trained(MAKERS[family], method)
    expected = logits(model, batch)
    balora.export(model, to="merged", output=tmp_path / "merged", initial=teacher)
    plain = type(MAKERS[family]()).from_pretrained(tmp_path / "merged")
    assert not any(True for _ in lora_layers(plain))
    assert (logits(plain, batch) - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_pruned_ranks_are_not_exported(tmp_path):
    model, teacher, _ = trained(tiny_llama, "adalora")
    balora.export(model, to="lora", output=tmp_path / "lora", initial=teacher)
    stored = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    for name, layer in lora_layers(model):
        kept = int((layer.lora_E["default"] != 0).sum())
        assert len(stored[f"base_model.model.{name}.lora_A.weight"]) == kept == 4, name


@pytest.mark.parametrize("method", ["houlsby", "pfeiffer"])
@pytest.mark.parametrize("to", ["lora", "merged"])
def test_bottleneck_adapters_cannot_be_exported(method, to, tmp_path):
    model, teacher, _ = trained(tiny_llama, method)
    with pytest.raises(balora.BALoraError, match=r"so (the change is no LoRA|it cannot be merged).*balora\.load"):
        balora.export(model, to=to, output=tmp_path / "out", initial=teacher)
    assert not (tmp_path / "out").exists()
