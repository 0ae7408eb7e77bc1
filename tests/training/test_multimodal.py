"""Models that read images and text are trained on text: the text part is adapted, and the other parts stay as they are."""

from __future__ import annotations

import json
import logging

import pytest
import torch
import transformers
from peft import PeftModel

import balora
from balora.config.run_config import RunConfig
from balora.errors import BALoraError
from balora.estimation.validate import validate
from balora.evaluation.engines.transformers import Sampling, TransformersGenerator
from balora.evaluation.model_under_test import ModelUnderTest
from balora.loading.pretrained import load_model
from balora.loading.source import Location, ModelSource
from balora.methods.quantization.quantized_linear import QuantizedLinear
from balora.models.multimodal import parts_beside_text
from balora.training.run import run
from multimodal import MULTIMODAL, gemma3, gemma3n, qwen2_5_vl
from small_runs import trainer
from tiny import (
    labelled_rows,
    pad_rows,
    tiny_bart,
    tiny_bert,
    tiny_gpt2,
    tiny_llama,
    tiny_t5,
    tiny_tokenizer,
    token_rows,
)

TOKENS = torch.arange(4, 12)[None]


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS).logits


@pytest.mark.parametrize("family", MULTIMODAL)
def test_the_text_part_is_trained_saved_and_exported(family, tmp_path, caplog):
    make = MULTIMODAL[family]
    make().save_pretrained(tmp_path / "base")
    base = type(make()).from_pretrained(tmp_path / "base")
    beside = parts_beside_text(base)
    assert beside and not any("language_model" in part for part in beside)
    with caplog.at_level(logging.WARNING, logger="balora"):
        model = balora.adapt(base, rank=4)
    assert f"Training is on text, so {' and '.join(beside)} stay as they are." in caplog.text
    names = [name.removeprefix("base_model.model.") for name, p in model.named_parameters() if p.requires_grad]
    assert names and all("language_model" in name for name in names)
    run_ = trainer(model, tmp_path / "run", rows=token_rows(vocab=90), learning_rate=3e-2)
    run_.train()
    still = [n for n, p in model.named_parameters() if p.requires_grad and torch.equal(p, run_.teacher.initial[n])]
    assert not still, "every adapter learns"
    run_.save_model(str(tmp_path / "final"))
    assert torch.equal(logits(balora.load(tmp_path / "final")), logits(run_.model))
    assert balora.export(tmp_path / "final", "lora", output=tmp_path / "lora").agreement.holds
    full = PeftModel.from_pretrained(type(make()).from_pretrained(tmp_path / "base"), tmp_path / "lora")
    torch.testing.assert_close(logits(full), logits(run_.model), atol=2e-4, rtol=2e-4)
    kind = "AutoModelForCausalLM" if family.startswith("Gemma") else "AutoModelForImageTextToText"
    assert f"base = {kind}.from_pretrained(" in (tmp_path / "lora" / "README.md").read_text()
    balora.export(tmp_path / "final", "merged", output=tmp_path / "merged")
    merged = type(make()).from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged), logits(run_.model), atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("family", MULTIMODAL)
def test_both_loss_paths_agree(family, tmp_path):
    losses = []
    for path in ("fused", "plain"):
        run_ = trainer(balora.adapt(MULTIMODAL[family](), rank=4), tmp_path / path, loss_path=path)
        batch = pad_rows(token_rows(vocab=90)[:3])
        labels = batch.pop("labels")
        losses.append(run_.step.evaluate(run_.model, batch, labels, keep_logits=False)[0])
        own = run_.model.get_base_model()(**batch, labels=labels).loss
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(losses[0], own)


def test_layer_names_select_the_text_part_and_full_names_what_they_say():
    model = balora.adapt(gemma3(), "lora", rank=2, target_modules=["q_proj", "v_proj"])
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert names and all("language_model" in name for name in names)
    model = balora.adapt(gemma3(), "lora", rank=2, target_modules=r".*vision_tower.*q_proj")
    assert any("vision_tower" in name for name, p in model.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("method", ["full", "bitfit", "houlsby"])
def test_other_methods_leave_the_vision_tower_alone(method, tmp_path):
    make = {"full": gemma3, "bitfit": qwen2_5_vl, "houlsby": gemma3}[method]
    model = balora.adapt(make(), method, **({"rank": 4} if method == "houlsby" else {}))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained and not any("vision" in name or "visual" in name or "projector" in name for name in trained)


@pytest.mark.parametrize("make", [tiny_llama, tiny_bert, tiny_gpt2, tiny_t5, tiny_bart, gemma3n])
def test_a_model_for_text_has_no_other_part(make):
    assert parts_beside_text(make()) == []


def test_a_multimodal_classifier_keeps_its_head(tmp_path):
    model = balora.adapt(gemma3("Gemma3ForSequenceClassification", num_labels=3), rank=2)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert any("score" in name for name in trained) and not any("vision" in name for name in trained)
    run_ = trainer(model, tmp_path, config=None, rows=labelled_rows(vocab=90))
    assert run_.train().metrics["train_loss"] > 0


@pytest.mark.parametrize("family", ["Gemma 3", "Qwen2-VL", "Qwen3-VL"])
def test_the_command_trains_a_multimodal_checkpoint(family, tmp_path):
    model = MULTIMODAL[family]()
    model.save_pretrained(tmp_path / "base")
    tiny_tokenizer(90).save_pretrained(tmp_path / "base")
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"q": f"{n} and", "a": f"{n} {n}"}) + "\n" for n in range(8))
    )
    config = RunConfig.from_dict({
        "model": str(tmp_path / "base"), "task": "generation", "output": str(tmp_path / "run"), "method": {"rank": 4},
        "data": {"train": str(tmp_path / "rows.jsonl"), "prompt": "q", "response": "a"},
        "training": {"max_steps": 2, "per_device_train_batch_size": 4, "report_to": "none"},
    })  # fmt: skip
    report = validate(config)
    assert not report.problems
    trained = run(config).trainer.model
    trainable = sum(p.numel() for p in trained.parameters() if p.requires_grad)
    assert report.estimate.trainable == trainable and report.estimate.activations_gib
    assert type(trained.get_base_model()) is type(model)
    assert balora.export(tmp_path / "run", "lora", output=tmp_path / "lora").agreement.holds
    for name in ("base", "run", "lora"):
        loaded = ModelUnderTest(str(tmp_path / name)).load("cpu")
        answers = dict(TransformersGenerator(loaded, 2).generate([[5, 6], [7, 8, 9]], Sampling(3)))
        assert loaded.task == "generation" and len(answers) == 2


def test_a_model_that_needs_images_is_refused(tmp_path):
    config = transformers.BlipConfig()
    config.save_pretrained(tmp_path)
    with pytest.raises(BALoraError, match="blip model, which cannot do task generation"):
        load_model(ModelSource(model=Location(str(tmp_path)), task="generation"))


def test_a_model_for_sound_is_trained_on_text_as_a_decoder(tmp_path):
    text = {**gemma3().config.text_config.to_dict(), "model_type": "qwen2"}
    audio = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}
    sizes = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
    )
    config = transformers.Qwen2AudioConfig(
        text_config=transformers.Qwen2Config(**{name: text[name] for name in sizes}),
        audio_config=audio,
        audio_token_index=90,
    )
    transformers.Qwen2AudioForConditionalGeneration(config).save_pretrained(tmp_path / "base")
    model = transformers.AutoModelForMultimodalLM.from_pretrained(tmp_path / "base")
    run_ = trainer(balora.adapt(model, rank=4), tmp_path / "run", rows=token_rows(vocab=90))
    run_.train()
    run_.save_model(str(tmp_path / "final"))
    assert torch.equal(logits(balora.load(tmp_path / "final")), logits(run_.model))
    with pytest.raises(BALoraError, match=r"has no encoder for text\. Use task: generation"):
        load_model(ModelSource(model=Location(str(tmp_path / "base")), task="seq2seq"))


def test_a_model_that_reads_no_text_is_refused(tmp_path):
    config = transformers.WhisperConfig(
        vocab_size=60, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=8, decoder_ffn_dim=8, pad_token_id=1, bos_token_id=2, eos_token_id=3, decoder_start_token_id=4,
    )  # fmt: skip
    model = balora.adapt(transformers.WhisperForConditionalGeneration(config), rank=2)
    with pytest.raises(BALoraError, match="reads input_features and not text"):
        trainer(model, tmp_path, rows=token_rows(vocab=60))
    config.save_pretrained(tmp_path / "base")
    with pytest.raises(BALoraError, match=r"cannot do task seq2seq\. It can do none of the tasks"):
        load_model(ModelSource(model=Location(str(tmp_path / "base")), task="seq2seq"))


def test_the_vision_tower_is_not_rounded_to_few_bits():
    pytest.importorskip("bitsandbytes")
    for make in (gemma3, MULTIMODAL["Gemma 4"]):
        model = balora.adapt(make(), "qlora", rank=2)
        rounded = [name for name, module in model.named_modules() if isinstance(module, QuantizedLinear)]
        assert rounded and all("language_model" in name for name in rounded)
