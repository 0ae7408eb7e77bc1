from __future__ import annotations

import pytest
import torch
from torch import nn

import balora
from balora import BALoraError
from balora.methods.start import check_identity, evaluating, probe_logits, start_of
from tiny import tiny_bart, tiny_bert, tiny_llama, tiny_t5


@pytest.mark.parametrize("make", [tiny_llama, tiny_bart, tiny_t5, tiny_bert])
def test_the_probe_is_seeded_and_leaves_no_trace(make):
    model = make().train()
    state = torch.random.get_rng_state()
    first, second = probe_logits(model), probe_logits(model)
    assert first is not None and first.dtype == torch.float32
    assert torch.equal(first, second)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(module.training for module in model.modules())
    assert not first.requires_grad


def test_there_is_nothing_to_probe_without_weights_or_tokens():
    with torch.device("meta"):
        assert probe_logits(tiny_llama()) is None
    assert probe_logits(nn.Linear(2, 2)) is None


def test_a_changed_function_is_refused_by_how_much():
    model = tiny_llama()
    before = probe_logits(model)
    check_identity(before, model, "balora")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1.1)
    with pytest.raises(BALoraError, match=r"Method 'balora' changed .* its logits moved by \d\.\d+ of"):
        check_identity(before, model, "balora")


def test_nan_weights_are_refused():
    model = tiny_llama()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(BALoraError, match="may hold NaN"):
        balora.adapt(model, method="lora", rank=4)


def test_the_record_says_how_the_adapter_started():
    start = start_of(balora.adapt(tiny_llama(), method="pissa", rank=4, seed=7))
    assert (start.method, start.shifts_base, start.options.seed) == ("pissa", True, 7)
    assert not start_of(balora.adapt(tiny_llama(), method="lora", rank=4)).shifts_base
    assert start_of(tiny_llama()) is None


def test_evaluating_gives_every_module_its_own_mode_back_also_after_an_error():
    model = tiny_bert().train()
    model.bert.encoder.layer[0].eval()
    modes = [module.training for module in model.modules()]
    with pytest.raises(RuntimeError, match="inside"), evaluating(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
        raise RuntimeError("inside")
    assert [module.training for module in model.modules()] == modes
    assert torch.is_grad_enabled()
