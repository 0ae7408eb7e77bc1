"""The output of `trainer.save_model` is loaded, evaluated and exported like a run's result."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import balora
from balora import BALoraError
from balora.checkpoints import checkpoint as ckpt
from balora.evaluation.model_under_test import ModelUnderTest
from small_runs import arguments, trainer
from tiny import labelled_rows, tiny_bert, tiny_llama, tiny_tokenizer

TOKENS = torch.arange(4, 12)[None]


def logits(model):
    with torch.no_grad():
        return model.eval()(TOKENS).logits


@pytest.fixture
def base(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def trained(base, folder, method: str = "balora", **changes):
    options = {} if method == "full" else {"rank": 4}
    model = balora.adapt(AutoModelForCausalLM.from_pretrained(base), method=method, **options)
    run = trainer(model, folder, **changes)
    run.train()
    return run


@pytest.mark.parametrize("method", ["balora", "pissa", "olora", "lora", "full", "houlsby"])
def test_a_saved_model_loads_as_it_was_trained(base, tmp_path, method):
    run = trained(base, tmp_path / "run", method)
    run.save_model(str(tmp_path / "final"))
    expected = logits(run.model)
    assert (expected - logits(AutoModelForCausalLM.from_pretrained(base))).abs().max() > 1e-2
    assert torch.equal(logits(balora.load(tmp_path / "final", base=base)), expected)


@pytest.mark.parametrize("method", ["balora", "lora", "full"])
def test_a_saved_model_is_evaluated_without_naming_its_base(base, tmp_path, method):
    run = trained(base, tmp_path / "run", method)
    run.save_model(str(tmp_path / "final"))
    tiny_tokenizer().save_pretrained(tmp_path / "final")
    assert torch.equal(logits(ModelUnderTest(str(tmp_path / "final")).load("cpu").model), logits(run.model))


@pytest.mark.parametrize("to", ["lora", "merged"])
def test_a_saved_model_is_exported_as_it_was_trained(base, tmp_path, to):
    run = trained(base, tmp_path / "run")
    run.save_model(str(tmp_path / "final"))
    balora.export(tmp_path / "final", to, output=tmp_path / "out", base=base)
    if to == "lora":
        found = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "out")
    else:
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(found), logits(run.model), atol=1e-4, rtol=1e-4)


def test_a_saved_classifier_loads_with_its_head(tmp_path):
    tiny_bert().save_pretrained(tmp_path / "base")
    model = balora.adapt(AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3), rank=4)
    run = trainer(model, tmp_path / "run", config=None, rows=labelled_rows())
    run.train()
    run.save_model(str(tmp_path / "final"))
    assert torch.equal(logits(balora.load(tmp_path / "final", base=tmp_path / "base")), logits(run.model))


def test_saving_into_the_run_directory_does_not_cover_checkpoints_and_later_files(base, tmp_path):
    run = trained(base, tmp_path, save_strategy="steps", save_steps=2, save_total_limit=1)
    run.save_model()
    tiny_tokenizer().save_pretrained(tmp_path)
    run.save_state()
    run.save_metrics("train", {"loss": 1.0})
    ckpt.check_manifest(tmp_path / "checkpoint-4")
    (tmp_path / "checkpoint-4" / "adapter_config.json").unlink()
    assert torch.equal(logits(balora.load(tmp_path, base=base)), logits(run.model))


def test_saving_again_replaces_the_result_and_a_damaged_result_is_refused(base, tmp_path):
    run = trained(base, tmp_path / "run")
    run.save_model(str(tmp_path / "final"))
    run.args.max_steps = 8
    run.train()
    run.save_model(str(tmp_path / "final"))
    assert torch.equal(logits(balora.load(tmp_path / "final", base=base)), logits(run.model))
    weights = tmp_path / "final" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(BALoraError, match=r"adapter_model\.safetensors is not as it was written"):
        balora.load(tmp_path / "final", base=base)


def test_a_model_without_a_balora_adapter_is_saved_as_the_trainer_does(tmp_path):
    run = balora.BALoraTrainer(
        model=tiny_llama(), args=arguments(tmp_path / "run"), regularization=balora.RegularizationConfig.off()
    )
    run.save_model(str(tmp_path / "final"))
    assert not (tmp_path / "final" / ckpt.MANIFEST).exists()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "final")
