"""Adapters on stacks of experts: the matrix of each expert has its own decomposition."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel

import balora
from balora import BALoraError
from balora.methods.layers.lora_linear import LoraLinear
from balora.methods.layers.peft_lora import adapted_names, lora_layers
from balora.methods.layers.weight_views import weight_matrices
from bench import adapted, logits, missing_gradients, rows_for
from tiny import pad_rows, tiny_causal

FAMILIES = {
    "mixtral": lambda: tiny_causal("Mixtral"),
    "qwen2-moe": lambda: tiny_causal("Qwen2Moe", moe_intermediate_size=24, shared_expert_intermediate_size=40, num_experts=4),
    "deepseek-v2": lambda: tiny_causal(
        "DeepseekV2", moe_intermediate_size=24, n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1,
        first_k_dense_replace=1, kv_lora_rank=16, q_lora_rank=None, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8,
        n_group=1, topk_group=1, num_key_value_heads=4,
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_every_expert_gets_its_own_principal_components(family):
    plain, model = FAMILIES[family](), adapted(FAMILIES[family], "pissa", rank=3, alpha=6)
    stacked = [m for m in weight_matrices(model) if m.expert is not None]
    assert {m.expert for m in stacked} == {0, 1, 2, 3}
    weights = dict(plain.named_parameters())
    for matrix in stacked:
        name = matrix.name.replace(".base_layer", "") + "." + matrix.layer.parameter_name
        weight = weights[name][matrix.expert]
        u, s, vt = torch.linalg.svd(weight.double())
        best = u[:, :3] * s[:3] @ vt[:3]
        found = matrix.scaling * (matrix.factor_b_OR @ matrix.factor_a_RI)
        assert (found - best).abs().max() <= 1e-4 * s[0], name
        assert (matrix.weight_OI + found - weight).abs().max() <= 1e-5 * s[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_experts_keep_their_function_and_get_gradients(family):
    plain, model = FAMILIES[family](), adapted(FAMILIES[family], "pissa", rank=3)
    batch = pad_rows(rows_for(plain)[:4])
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    expected = logits(plain, inputs)
    assert (logits(model, inputs) - expected).abs().max() <= 1e-5 * expected.abs().max()
    model(**batch).loss.backward()
    moved = [
        m
        for m in weight_matrices(model)
        if m.expert is not None and m.layer.lora_B["default"].weight.grad.abs().max() > 0
    ]
    assert moved


RESERVED = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "shared_experts.gate_proj", "shared_experts.up_proj"]


def test_dense_layers_and_shared_experts_are_adapted_though_peft_reserves_their_names(tmp_path):
    model = adapted(FAMILIES["deepseek-v2"], "balora")
    names = adapted_names(model)
    assert all(any(name.endswith(f".{end}") for name in names) for end in RESERVED)
    assert {type(layer) for name, layer in lora_layers(model) if "shared_experts" in name} == {LoraLinear}
    teacher, batch = balora.PretrainedTeacher(model), pad_rows(rows_for(model)[:4])
    assert not missing_gradients(model, batch)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    expected = logits(model, inputs)
    balora.export(model, to="lora", output=tmp_path / "lora", initial=teacher)
    plain = PeftModel.from_pretrained(FAMILIES["deepseek-v2"](), tmp_path / "lora")
    assert (logits(plain, inputs) - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("method", ["lora", "dora", "adalora", "corda"])
def test_a_layer_with_a_reserved_name_can_be_named(method, tmp_path):
    targets = ["q_proj", "shared_experts.up_proj"]
    model = adapted(FAMILIES["deepseek-v2"], method, target_modules=targets)
    assert "model.layers.1.mlp.shared_experts.up_proj" in adapted_names(model)
    assert not missing_gradients(model, pad_rows(rows_for(model)[:4]))


def test_the_saved_config_of_a_layer_with_a_reserved_name_is_that_of_plain_peft(tmp_path):
    model = adapted(FAMILIES["deepseek-v2"], "lora", target_modules=["q_proj", "shared_experts.up_proj"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    inputs = {name: value for name, value in pad_rows(rows_for(model)[:4]).items() if name != "labels"}
    loaded = PeftModel.from_pretrained(FAMILIES["deepseek-v2"](), tmp_path)
    torch.testing.assert_close(logits(loaded, inputs), logits(model, inputs), rtol=1e-4, atol=1e-4)


def test_experts_can_be_excluded():
    model = balora.adapt(FAMILIES["mixtral"](), rank=4, target_modules=["q_proj", "v_proj"])
    assert {m.name.rsplit(".", 1)[-1] for m in weight_matrices(model)} == {"q_proj", "v_proj"}


@pytest.mark.parametrize("targets", [["experts.gate_up_proj"], r".*gate_up_proj"])
def test_experts_can_be_named(targets):
    model = balora.adapt(FAMILIES["mixtral"](), rank=4, target_modules=targets)
    assert {m.layer.parameter_name for m in weight_matrices(model)} == {"gate_up_proj"}


@pytest.mark.parametrize("method", ["dora", "adalora", "corda", "cordapp", "houlsby", "pfeiffer"])
def test_methods_without_support_for_experts_refuse_them(method):
    with pytest.raises(BALoraError, match="stacks the weights of several experts"):
        adapted(FAMILIES["mixtral"], method)


def test_dropout_on_experts_is_refused():
    with pytest.raises(BALoraError, match=r"dropout on the adapter's input does not work there.*set dropout: 0"):
        balora.adapt(FAMILIES["mixtral"](), rank=4, dropout=0.1)
