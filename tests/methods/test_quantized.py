"""Frozen weights in 4 and 8 bits: decomposed in full precision, then quantized (QLoRA, QPiSSA, QBA-LoRA)."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

import balora
from balora import BALoraError
from balora.methods import METHODS
from balora.methods.initial_state import initial_state_of, stored_parameters
from balora.methods.layers.peft_lora import lora_layers
from balora.methods.quantization.quantize import dequantize, quantize, quantized_bytes
from balora.methods.quantization.quantized_linear import QuantizedLinear
from balora.regularizers import consistency
from bench import adapted, logits, rows_for
from tiny import pad_rows, tiny_bart, tiny_bert, tiny_causal, tiny_gpt2, tiny_llama, tiny_t5

pytest.importorskip("bitsandbytes", reason="bitsandbytes is absent: pip install 'balora[quantization]'")
WITH_BITS = [name for name, method in METHODS.items() if "bits" in method.options and not name.startswith("q")]
NF4 = [-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0]
NF4 += [0.0795803, 0.1609302, 0.24611230, 0.33791524, 0.44070983, 0.56261700, 0.72295684, 1.0]
"""Levels of NF4 (Dettmers et al., QLoRA, appendix E)."""


def quantized(model: nn.Module) -> dict[str, QuantizedLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}


def tokens(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value for name, value in pad_rows(rows_for(model)[:4]).items() if name != "labels"}


# -- the layers -------------------------------------------------------------------------------------------------------


def test_nf4_rounds_to_the_nearest_level_of_each_block():
    layer = rounded(nn.Linear(64, 48), 4, double=False)
    blocks = layer.before.reshape(-1, 64).double()
    largest = blocks.abs().amax(1, keepdim=True)
    levels = torch.tensor(NF4, dtype=torch.float64)
    nearest = levels[((blocks / largest)[..., None] - levels).abs().argmin(-1)] * largest
    torch.testing.assert_close(layer.dequantized().reshape(-1, 64).double(), nearest, atol=1e-6, rtol=0)


def test_quantized_scales_add_little_error():
    once, twice = (rounded(nn.Linear(256, 96), 4, double=double) for double in (False, True))
    error = [float(torch.dist(layer.dequantized(), layer.before) / layer.before.norm()) for layer in (once, twice)]
    assert 0.05 < error[0] < error[1] < 1.03 * error[0]
    scales = [layer.weight.quant_state.absmax.nbytes for layer in (once, twice)]
    assert quantized_bytes((96, 256), 4, False) == once.weight.nbytes + scales[0]
    assert (
        quantized_bytes((96, 256), 4) == twice.weight.nbytes + scales[1] + twice.weight.quant_state.state2.absmax.nbytes
    )


def test_8_bits_round_to_255_levels_per_row():
    layer = rounded(nn.Linear(50, 7), 8)
    step = layer.before.abs().amax(1, keepdim=True) / 127
    assert ((layer.dequantized() - layer.before).abs() <= 0.51 * step + 1e-3 * layer.before.abs()).all()
    assert len(layer.dequantized()[0].unique()) > 30
    assert quantized_bytes((7, 50), 8) == layer.weight.nbytes + layer.scale_O.nbytes


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    "columns", [64, 48, 33]
)  # rows of 48 cross block boundaries, for which bitsandbytes' own product is wrong
@pytest.mark.parametrize("training", [True, False])
def test_forward_and_gradient_use_the_dequantized_weight(bits, columns, training):
    layer = rounded(nn.Linear(columns, 96), bits).train(training)
    assert torch.dist(layer.dequantized(), layer.before) < 0.11 * layer.before.norm()
    x = torch.randn(3, 5, columns, requires_grad=True)
    with torch.no_grad():
        layer.eval()(x)  # an evaluation in between has no effect
    layer.train(training)
    found = layer(x)
    found.square().sum().backward()
    truth = nn.functional.linear(x.detach(), layer.dequantized(), layer.bias)
    torch.testing.assert_close(found, truth, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(x.grad, 2 * truth @ layer.dequantized(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("bits", [4, 8])
def test_autocast_sets_the_dtype_and_keeps_the_bias(bits):
    layer = rounded(nn.Linear(64, 32), bits)
    bias = layer.bias.detach().clone()
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(2, 64)).dtype == torch.bfloat16
    assert layer(torch.randn(2, 64)).dtype == torch.float32
    assert layer.bias.dtype == torch.float32 and torch.equal(layer.bias, bias)


@pytest.mark.parametrize("bits", [4, 8])
def test_copies_and_casts_keep_the_quantized_weight(bits):
    layer = rounded(nn.Linear(64, 32), bits)
    expected = layer.dequantized()
    layer(torch.randn(2, 64))
    for changed in (copy.deepcopy(layer), layer.to(torch.bfloat16).float().to("cpu")):
        assert torch.equal(changed.dequantized(), expected)
        torch.testing.assert_close(changed(torch.eye(64)) - changed.bias, expected.T, atol=1e-6, rtol=0)


def rounded(linear: nn.Linear, bits: int, *, double: bool = True):
    with torch.no_grad():
        linear.weight.normal_()
    model = nn.ModuleDict({"layer": linear})
    quantize(model, [], bits, double=double)
    assert model["layer"] is not linear
    model["layer"].before = linear.weight.detach()
    return model["layer"]


# -- the model --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2, tiny_bert, tiny_bart])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_residual_is_quantized(make, bits):
    exact = dict(lora_layers(adapted(make, "pissa")))
    model = adapted(make, "pissa", bits=bits)
    found = dict(lora_layers(model))
    assert found.keys() == exact.keys()
    for name, layer in found.items():
        base, other = layer.get_base_layer(), exact[name].get_base_layer()
        residual = other.weight.T if isinstance(other, Conv1D) else other.weight
        assert base.bits == bits
        error = torch.dist(base.dequantized(), residual) / residual.norm()
        assert 1e-4 < error < {4: 0.12, 8: 0.015}[bits], name
        for kind in ("lora_A", "lora_B"):
            assert torch.equal(getattr(layer, kind)["default"].weight, getattr(exact[name], kind)["default"].weight)
    # An ordinary model with the dequantized weights and the same factors computes the same function.
    plain = copy.deepcopy(model).unload()
    dequantize(plain, torch.float32)
    assert not quantized(plain)
    again = adapted(lambda: plain, "lora")
    for name, layer in dict(lora_layers(again)).items():
        for kind in ("lora_A", "lora_B"):
            getattr(layer, kind)["default"].weight.data.copy_(getattr(found[name], kind)["default"].weight)
    inputs = tokens(model)
    torch.testing.assert_close(logits(again, inputs), logits(model, inputs), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("method", WITH_BITS)
def test_every_method_with_the_option_trains_on_quantized_weights(method):
    model = adapted(tiny_llama, method, bits=8 if method == "dora" else 4)
    full = adapted(tiny_llama, method)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, p in full.named_parameters() if p.requires_grad
    }
    assert len(quantized(model)) == 14
    batch = pad_rows(rows_for(model)[:4])
    model.train()(**batch).loss.backward()
    moved = [p for p in model.parameters() if p.grad is not None and p.grad.abs().max() > 0]
    assert len(moved) >= 14
    # The model built from stored initial values is equal to the bit.
    state = initial_state_of(model)
    again = balora.adapt(
        tiny_llama(),
        method,
        rank=4,
        initial={name: p.detach() for name, p in stored_parameters(model)},
        **state.options.extra,
    )
    assert torch.equal(logits(again, tokens(model)), logits(model, tokens(model)))


def test_heads_embeddings_and_float32_layers_are_not_quantized():
    names = quantized(adapted(tiny_bert, "qlora"))
    assert any("attention" in name for name in names) and not any("classifier" in name for name in names)
    assert not any("lm_head" in name or "embed" in name for name in quantized(adapted(tiny_llama, "qlora")))
    assert not any(
        ".wo." in name for name in quantized(adapted(tiny_t5, "qlora"))
    )  # its forward casts to the weight's dtype


def test_the_teacher_is_the_quantized_model_after_steps():
    model = adapted(tiny_llama, "qbalora")
    inputs, expected = tokens(model), logits(model, tokens(model))
    teacher = balora.PretrainedTeacher(model)
    with torch.no_grad():
        for _, parameter in stored_parameters(model):
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    assert (logits(model, inputs) - expected).abs().max() > 0.1
    with teacher.active():
        assert torch.equal(model(**inputs).logits, expected)


def test_dora_in_4_bits_needs_rows_of_full_blocks():
    make, targets = partial(tiny_llama, hidden=64), {"target_modules": ["q_proj", "v_proj"]}
    assert_alike = partial(torch.testing.assert_close, atol=1e-4, rtol=1e-4)
    model, lora = (adapted(make, method, bits=4, **targets) for method in ("dora", "lora"))
    for name, layer in lora_layers(model):
        weight = make().get_submodule(name).weight
        assert_alike(layer.lora_magnitude_vector["default"].weight, weight.norm(dim=1))
        # m / ‖Q(W)‖ scales the rows of Q(W), so that their lengths are those of W.
        x, base = torch.eye(64), layer.get_base_layer().dequantized()
        scale = weight.norm(dim=1) / base.norm(dim=1)
        assert_alike(layer.eval()(x).detach().T, (base * scale[:, None]).detach())
    assert (logits(model, tokens(model)) - logits(lora, tokens(lora))).abs().max() > 1e-3
    with pytest.raises(BALoraError, match=r"multiple of 64 inputs, and .*down_proj has 48: .* Use bits: 8"):
        adapted(make, "dora", bits=4)


def test_gradient_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        model = adapted(tiny_llama, "qpissa").train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(**pad_rows(rows_for(model)[:4])).loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(*gradients)


# -- distance from the pre-trained model -------------------------------------------------------------------------------


def test_quantizing_the_residual_has_a_smaller_error_on_real_weights(stories):
    """The residual of QPiSSA is smaller than the weight, and so is its quantization error."""
    full = AutoModelForCausalLM.from_pretrained(stories)
    text = torch.randint(3, 500, (1, 60), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = full(text).logits[0]

    def distances(method: str, rank: int, bits: int) -> tuple[float, float]:
        model = balora.adapt(AutoModelForCausalLM.from_pretrained(stories), method, rank=rank, bits=bits).eval()
        with torch.no_grad():
            divergence = float(consistency(model(text).logits[0], expected, 1.0))
        error = norm = 0.0
        for name, layer in lora_layers(model):
            weight = full.get_submodule(name).weight.detach()
            now = layer.get_base_layer().dequantized() + layer.get_delta_weight("default").detach()
            error, norm = error + float((now - weight).square().sum()), norm + float(weight.square().sum())
        return (error / norm) ** 0.5, divergence

    qlora, small, large = distances("qlora", 8, 4), distances("qpissa", 8, 4), distances("qpissa", 32, 4)
    assert 0.085 < qlora[0] < 0.1
    assert small[0] < 0.75 * qlora[0] and large[0] < 0.4 * qlora[0]
    assert large[1] < small[1] < qlora[1] < 0.6
    eight = distances("lora", 8, 8)
    assert eight[0] < 0.007 and eight[1] < 0.003


# -- models that are loaded quantized ---------------------------------------------------------------------------------------


@pytest.fixture(params=[4, 8])
def bits_and_model(request, tmp_path):
    tiny_llama().save_pretrained(tmp_path)
    kind = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"} if request.param == 4 else {"load_in_8bit": True}
    return request.param, AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=BitsAndBytesConfig(**kind))


def test_a_lora_on_a_model_loaded_in_few_bits(bits_and_model):
    bits, loaded = bits_and_model
    model = balora.adapt(loaded, "lora", rank=4)
    assert {layer.bits for layer in quantized(model).values()} == {bits} and len(quantized(model)) == 14
    ours = adapted(tiny_llama, "lora", bits=bits, double_quantization=False)
    torch.testing.assert_close(logits(model, tokens(model)), logits(ours, tokens(model)), atol=1e-4, rtol=1e-4)
    model.train()(**pad_rows(rows_for(model)[:4])).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_a_model_loaded_in_few_bits_is_not_decomposed(bits_and_model):
    bits, loaded = bits_and_model
    with pytest.raises(
        BALoraError,
        match=r"quantized, and this method cannot subtract its adapter.*method\.bits quantizes the residual",
    ):
        balora.adapt(loaded, "qpissa" if bits == 4 else "pissa", rank=4)
    with pytest.raises(BALoraError, match=rf"loaded in {bits} bits already, and method\.bits asks for {12 - bits}"):
        balora.adapt(loaded, "lora", rank=4, bits=12 - bits)


# -- refused ---------------------------------------------------------------------------------------------------


def test_models_that_cannot_be_quantized_are_refused(monkeypatch):
    with pytest.raises(
        BALoraError,
        match=r"stacks the weights of several experts\. The layers of bitsandbytes do not support.*Leave out method\.bits",
    ):
        adapted(lambda: tiny_causal("Mixtral"), "qlora")
    with pytest.raises(
        BALoraError, match=r"'adalora' has no option 'bits'\. Methods that have it: lora, rslora, dora,"
    ):
        adapted(tiny_llama, "adalora", bits=4)
    with pytest.raises(BALoraError, match=r"method\.bits is one of 4, 8, not 2"):
        adapted(tiny_llama, "pissa", bits=2)
    broken = tiny_llama()
    broken.model.layers[1].mlp.up_proj.weight.data[0, 0] = 1e6
    with pytest.raises(BALoraError, match=r"layers\.1\.mlp\.up_proj cannot be quantized to 8 bits"):
        balora.adapt(broken, "lora", rank=4, bits=8)
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    with pytest.raises(BALoraError, match=r"needs bitsandbytes, which is not installed\. Install it with `pip install"):
        balora.adapt(tiny_llama(), "qlora", rank=4)
