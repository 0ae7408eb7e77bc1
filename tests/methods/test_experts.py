"""Adapters on stacks of experts: the matrix of each expert has its own decomposition."""

from __future__ import annotations

import pytest
import torch

import balora
from balora import BALoraError
from balora.methods.layers.weight_views import weight_matrices
from bench import adapted, logits, rows_for
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


def test_layers_with_names_reserved_for_experts_are_skipped_with_a_warning(caplog):
    model = adapted(FAMILIES["deepseek-v2"], "lora")
    assert "get no adapter, because peft reserves their name for experts' weights" in caplog.text
    assert not [m.name for m in weight_matrices(model) if "shared_expert" in m.name]
    with pytest.raises(BALoraError, match=r"shared_experts\.up_proj cannot be adapted.*Leave it out"):
        balora.adapt(FAMILIES["deepseek-v2"](), "lora", rank=4, target_modules=["q_proj", "shared_experts.up_proj"])


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
