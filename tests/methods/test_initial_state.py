from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel
from torch import nn

import balora
from balora import BALoraError
from balora.methods.initial_state import check_same_function, initial_state_of, probe_logits
from balora.models.adapted_model import evaluating
from tiny import tiny_bart, tiny_bert, tiny_llama, tiny_t5


@pytest.mark.parametrize("make", [tiny_llama, tiny_bart, tiny_t5, tiny_bert])
def test_probe_logits_are_seeded_and_change_no_state(make):
    model = make().train()
    state = torch.random.get_rng_state()
    first, second = probe_logits(model), probe_logits(model)
    assert first is not None and first.dtype == torch.float32
    assert torch.equal(first, second)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(module.training for module in model.modules())
    assert not first.requires_grad


def test_models_without_weights_or_text_input_have_no_probe_logits():
    with torch.device("meta"):
        assert probe_logits(tiny_llama()) is None
    assert probe_logits(nn.Linear(2, 2)) is None


def test_a_changed_function_is_refused_with_the_size_of_the_change():
    model = tiny_llama()
    before = probe_logits(model)
    check_same_function(before, model, "balora")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1.1)
    with pytest.raises(BALoraError, match=r"Method 'balora' changed .* its logits differ by \d\.\d+ of"):
        check_same_function(before, model, "balora")


def test_nan_weights_are_refused():
    model = tiny_llama()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(BALoraError, match="may hold NaN"):
        balora.adapt(model, method="lora", rank=4)


def test_the_record_has_method_and_options():
    state = initial_state_of(balora.adapt(tiny_llama(), method="pissa", rank=4, seed=7))
    assert (state.method, state.residual_base, state.options.seed) == ("pissa", True, 7)
    assert not initial_state_of(balora.adapt(tiny_llama(), method="lora", rank=4)).residual_base
    assert initial_state_of(tiny_llama()) is None


def test_evaluating_restores_each_modules_mode_after_an_error():
    model = tiny_bert().train()
    model.bert.encoder.layer[0].eval()
    modes = [module.training for module in model.modules()]
    with pytest.raises(RuntimeError, match="inside"), evaluating(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
        raise RuntimeError("inside")
    assert [module.training for module in model.modules()] == modes
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("method", ["balora", "pissa", "milora", "olora"])
def test_peft_refuses_an_adapter_that_was_trained_on_residual_weights(method, tmp_path):
    balora.adapt(tiny_llama(), method=method, rank=4).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"balora export RUN --to lora.*balora\.export\(model"):
        PeftModel.from_pretrained(tiny_llama(), tmp_path)
    with pytest.raises(ValueError, match="balora export RUN --to lora"):
        tiny_llama().load_adapter(str(tmp_path))


def test_peft_loads_a_lora_that_was_trained_on_the_pretrained_weights(tmp_path):
    model = balora.adapt(tiny_llama(), method="lora", rank=4)
    model.save_pretrained(tmp_path)
    tokens = torch.arange(4, 12)[None]
    found = PeftModel.from_pretrained(tiny_llama(), tmp_path)(tokens).logits
    torch.testing.assert_close(found, model.eval()(tokens).logits)


def test_a_model_with_residual_weights_can_be_copied_and_get_a_second_adapter():
    model = balora.adapt(tiny_llama(), rank=4).eval()
    tokens = torch.arange(4, 12)[None]
    expected = model(tokens).logits
    torch.testing.assert_close(copy.deepcopy(model)(tokens).logits, expected)
    model.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj"]))
    torch.testing.assert_close(model(tokens).logits, expected)
