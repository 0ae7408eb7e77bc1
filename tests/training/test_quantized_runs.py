"""Training on weights in 4 and 8 bits: runs resume, load and are exported as plain models."""

from __future__ import annotations

import shutil

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import balora
from balora import BALoraError
from balora.checkpoints import checkpoint as ckpt
from balora.methods.fingerprint import first_mismatch
from balora.methods.quantization.quantize import replace_bitsandbytes_layers
from balora.methods.quantization.quantized_linear import QuantizedLinear
from bench import adapted
from small_runs import ALL_TERMS, flat, history, trainer
from tiny import tiny_bert, tiny_gpt2, tiny_llama
from trained_runs import batch, logits, trained_run

pytest.importorskip("bitsandbytes", reason="bitsandbytes is absent: pip install 'balora[quantization]'")
NF4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
INT8 = BitsAndBytesConfig(load_in_8bit=True)


def moved(model):
    """Return the model with changed trainable tensors, and its teacher."""
    teacher = balora.PretrainedTeacher(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.05 * (p.abs().mean() + 0.1) * torch.randn(p.shape, generator=generator))
    return model, teacher


@pytest.mark.parametrize(("method", "bits"), [("qlora", 4), ("qbalora", 4), ("balora", 8)])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(method, bits, tmp_path):
    def start(initial=None):
        model = balora.adapt(tiny_llama(), method, rank=4, bits=bits, initial=initial)
        return trainer(model, tmp_path, config=ALL_TERMS, max_steps=6, save_strategy="steps", save_steps=2)

    uninterrupted = start()
    uninterrupted.train()
    for later in (4, 6):
        shutil.rmtree(tmp_path / f"checkpoint-{later}")
    middle = tmp_path / "checkpoint-2"
    resumed = start(ckpt.read_initial_weights(middle).values)  # the decomposition is not repeated
    resumed.train(resume_from_checkpoint=str(middle))
    assert history(resumed, "loss") == history(uninterrupted, "loss")
    assert torch.equal(flat(resumed.model), flat(uninterrupted.model))
    # With other rounding it is another model.
    other = balora.adapt(tiny_llama(), method, rank=4, bits=12 - bits, initial=ckpt.read_initial_weights(middle).values)
    with pytest.raises(
        BALoraError,
        match=r"checkpoint-2 was trained on other weights than these: .*q_proj\.base_layer\.weight differs|_proj",
    ):
        trainer(other, tmp_path, config=ALL_TERMS, max_steps=6).train(resume_from_checkpoint=str(middle))


@pytest.mark.parametrize("bits", [4, 8])
def test_the_fingerprint_covers_codes_and_scales(bits):
    model = adapted(tiny_llama, "lora", bits=bits)
    before = ckpt.pretrained_fingerprint(model, {})
    name = "base_model.model.model.layers.1.mlp.up_proj.base_layer"
    layer = model.get_submodule(name)
    scale = layer.weight.quant_state.offset if bits == 4 else layer.scale_O[:1]
    scale *= 1.01
    assert first_mismatch(ckpt.pretrained_fingerprint(model, {}), before) == f"{name}.weight"
    scale /= 1.01
    assert first_mismatch(ckpt.pretrained_fingerprint(model, {}), before) is None
    layer.weight.data[3:9] ^= 1
    assert first_mismatch(ckpt.pretrained_fingerprint(model, {}), before) == f"{name}.weight"


@pytest.mark.parametrize(
    ("make", "task", "method"),
    [
        (tiny_llama, "generation", "qbalora"),
        (tiny_bert, "classification", "qpissa"),
        (tiny_gpt2, "generation", "qlora"),
    ],
)
def test_a_run_loads_exactly_and_merges_to_the_same_function(make, task, method, tmp_path):
    run = trained_run(tmp_path / "run", make(), task, method=method)
    inputs = batch(run.model)
    expected = logits(run.model, inputs)
    loaded = balora.load(run.folder)
    assert {m.bits for m in loaded.modules() if isinstance(m, QuantizedLinear)} == {4}
    assert torch.equal(logits(loaded, inputs), expected)
    report = balora.export(run.folder, to="merged", output=tmp_path / "merged")
    assert report.largest_difference < 1e-4 * max(1.0, expected.abs().max()) and report.note is None
    plain = type(make()).from_pretrained(tmp_path / "merged")
    assert all(p.is_floating_point() for p in plain.parameters()) and not hasattr(plain.config, "quantization_config")
    assert (logits(plain, inputs) - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("rounding", [NF4, INT8], ids=["4", "8"])
def test_without_a_residual_the_lora_is_for_the_base_in_the_same_bits(rounding, tmp_path):
    bits = 4 if rounding.load_in_4bit else 8
    tiny_llama(hidden=64).save_pretrained(tmp_path / "base")
    model, _ = moved(balora.adapt(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), "lora", rank=4, bits=bits))
    inputs = batch(model)
    expected = logits(model, inputs)
    report = balora.export(model, to="lora", output=tmp_path / "lora")
    assert report.rank == 4 and f"Load the base in {bits} bits" in str(report)
    assert report.largest_difference < 1e-4
    card = (tmp_path / "lora" / "README.md").read_text()
    assert "quantization_config=bits" in card and f"load_in_{bits}bit=True" in card
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", quantization_config=rounding)
    replace_bitsandbytes_layers(base)  # bitsandbytes' own forward is not exact on the CPU
    plain = PeftModel.from_pretrained(base, tmp_path / "lora")
    assert (logits(plain, inputs) - expected).abs().max() <= 1e-4 * expected.abs().max()
    whole = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "lora")
    assert (logits(whole, inputs) - expected).abs().max() > 1e-3


def test_with_a_residual_the_lora_is_for_the_base_in_full_precision(tmp_path, stories):
    """The exported LoRA differs from the trained model only by the rounding of the residual."""
    model, teacher = moved(balora.adapt(AutoModelForCausalLM.from_pretrained(stories), "qbalora", rank=8))
    twin, _ = moved(balora.adapt(AutoModelForCausalLM.from_pretrained(stories), "balora", rank=8))
    inputs = batch(model)
    expected, exact = logits(model, inputs), logits(twin, inputs)
    report = balora.export(model, to="lora", output=tmp_path / "lora", initial=teacher)
    assert report.rank == 16 and "for the base in full precision" in str(report)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(stories), tmp_path / "lora")
    assert (logits(plain, inputs) - exact).abs().max() <= 1e-4 * exact.abs().max()
    apart = (exact - expected).abs().max() / expected.abs().max()
    assert 1e-3 < apart < 0.4
    merged = balora.export(model, to="merged", output=tmp_path / "merged")
    assert merged.largest_difference < 1e-3


def test_a_lora_is_not_written_for_another_base(tmp_path):
    model, teacher = moved(balora.adapt(tiny_llama(), "qpissa", rank=4))
    tiny_llama(seed=1).save_pretrained(tmp_path / "other")
    with pytest.raises(
        BALoraError,
        match=r"_proj of the pre-trained model is 1\.\d+ of its norm away from what was trained",
    ):
        balora.export(model, to="lora", output=tmp_path / "lora", initial=teacher, base=tmp_path / "other")
    assert not (tmp_path / "lora").exists()


def test_a_model_loaded_in_4_bits_is_exported_as_a_lora_and_merged(tmp_path):
    tiny_llama(hidden=64).save_pretrained(tmp_path / "whole")
    AutoModelForCausalLM.from_pretrained(tmp_path / "whole", quantization_config=NF4).save_pretrained(tmp_path / "base")
    model, _ = moved(adapted(lambda: AutoModelForCausalLM.from_pretrained(tmp_path / "base"), "lora"))
    inputs = batch(model)
    expected = logits(model, inputs)
    for to in ("lora", "merged"):
        assert balora.export(model, to=to, output=tmp_path / to).largest_difference < 1e-4
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert (logits(plain, inputs) - expected).abs().max() <= 1e-4 * expected.abs().max()
