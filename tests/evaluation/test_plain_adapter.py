"""Adapters in peft's format, made here or elsewhere, are evaluated with their own head, classes, tokenizer and vocabulary."""

from __future__ import annotations

import logging

import peft
import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import balora
from balora import BALoraError
from balora.evaluation.engines.predictors import match_classes
from balora.evaluation.model_under_test import ModelUnderTest
from families import tiny_deberta
from small_runs import trainer
from tiny import labelled_rows, tiny_bert, tiny_llama, tiny_roberta, tiny_tokenizer
from trained_runs import LABELS, trained_run

TOKENS = torch.arange(4, 12)[None]


def logits(model):
    with torch.no_grad():
        return model.eval()(TOKENS).logits


def randomize(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def foreign(base, folder, labels=3, **settings):
    """Train and save an adapter as a script with peft does."""
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels)
    settings = {"task_type": TaskType.SEQ_CLS, "target_modules": ["query", "value"], **settings}
    model = randomize(get_peft_model(model, LoraConfig(r=4, **settings)))
    model.save_pretrained(folder)
    return model


@pytest.fixture
def body(tmp_path, request):
    """Save a pre-trained encoder without a head, with its pooler."""
    make = getattr(request, "param", tiny_bert)
    make().base_model.save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize("body", [tiny_bert, tiny_roberta], indirect=True)
@pytest.mark.parametrize("labels", [3, 2, 1])
def test_a_classifiers_adapter_from_peft_is_evaluated(body, tmp_path, labels):
    model = foreign(body, tmp_path / "adapter", labels)
    loaded = ModelUnderTest(str(tmp_path / "adapter")).load("cpu")
    assert torch.equal(logits(loaded.model), logits(model))
    assert (loaded.task, len(loaded.labels)) == ("regression" if labels == 1 else "classification", labels)


def test_an_adapter_without_a_head_uses_that_of_its_model(tmp_path):
    whole = tiny_bert()
    whole.config.id2label = {0: "no", 1: "maybe", 2: "yes"}
    whole.save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    model = foreign(tmp_path / "base", tmp_path / "adapter", task_type=None)
    loaded = ModelUnderTest(str(tmp_path / "adapter")).load("cpu")
    assert loaded.labels == ("no", "maybe", "yes")
    assert torch.equal(logits(loaded.model), logits(model))


def test_an_exported_classifier_keeps_the_names_of_its_classes(tmp_path):
    run = trained_run(tmp_path / "run", tiny_bert(), "classification")
    balora.export(run.folder, "lora", output=tmp_path / "lora")
    loaded = ModelUnderTest(str(tmp_path / "lora")).load("cpu")
    assert loaded.labels == tuple(LABELS)
    torch.testing.assert_close(logits(loaded.model), logits(run.model), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("body", [tiny_deberta], indirect=True)
def test_a_random_layer_that_the_adapter_lacks_is_refused(body, tmp_path):
    foreign(body, tmp_path / "adapter", target_modules=["query_proj"])
    with pytest.raises(BALoraError, match=r"pooler\.dense\.bias is neither in the model .* nor in the adapter"):
        ModelUnderTest(str(tmp_path / "adapter")).load("cpu")
    foreign(body, tmp_path / "whole", target_modules=["query_proj"], modules_to_save=["classifier", "pooler"])
    assert ModelUnderTest(str(tmp_path / "whole")).load("cpu").labels == ("LABEL_0", "LABEL_1", "LABEL_2")


def test_an_adapter_of_a_classifier_without_any_head_is_refused(body, tmp_path):
    from safetensors.torch import load_file, save_file

    foreign(body, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({name: value for name, value in load_file(path).items() if "classifier" not in name}, path)
    with pytest.raises(BALoraError, match=r"neither it nor the model .* has a trained head"):
        ModelUnderTest(str(tmp_path / "adapter")).load("cpu")
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.rename(path.with_suffix(".old"))
    with pytest.raises(BALoraError, match=r"Weights in pickle form can run any code"):
        ModelUnderTest(str(tmp_path / "adapter")).load("cpu")
    path.write_bytes(path.with_suffix(".old").read_bytes()[:30])
    with pytest.raises(BALoraError, match=r"adapter_model\.safetensors is damaged"):
        ModelUnderTest(str(tmp_path / "adapter")).load("cpu")


def test_an_adapter_of_another_model_is_refused(body, tmp_path):
    foreign(body, tmp_path / "adapter")
    tiny_bert(seed=1).base_model.save_pretrained(tmp_path / "other")
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(config.read_text().replace('"query"', '"nothing"').replace('"value"', '"nowhere"'))
    with pytest.raises(BALoraError, match="does not fit the model"):
        ModelUnderTest(str(tmp_path / "adapter")).load("cpu")


def test_a_lora_with_more_tokens_is_evaluated_with_its_own_tokenizer(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model.resize_token_embeddings(104)
    run = trainer(balora.adapt(model, rank=4), tmp_path / "run")
    run.train()
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"<t{number}>" for number in range(7)])
    balora.export(run.model, "lora", output=tmp_path / "lora", initial=run.teacher, tokenizer=tokenizer)
    loaded = ModelUnderTest(str(tmp_path / "lora")).load("cpu")
    assert len(loaded.tokenizer) == 104
    torch.testing.assert_close(logits(loaded.model), logits(run.model), atol=1e-5, rtol=1e-5)


def test_unnamed_classes_are_taken_in_the_tasks_order_and_that_is_said(caplog):
    with caplog.at_level(logging.WARNING, logger="balora"):
        assert match_classes(["LABEL_0", "LABEL_1"], ["negative", "positive"], "sst2") == ["negative", "positive"]
    assert "does not name its classes, so the task's order is assumed: negative = LABEL_0" in caplog.text


@pytest.mark.parametrize("method", ["balora", "lora"])
def test_a_saved_classifier_without_tokenizer_uses_that_of_its_model(body, tmp_path, method, caplog):
    model = AutoModelForSequenceClassification.from_pretrained(body, num_labels=3)
    run = trainer(balora.adapt(model, method, rank=4), tmp_path / "run", config=None, rows=labelled_rows())
    run.train()
    run.save_model(str(tmp_path / "final"))
    with caplog.at_level(logging.WARNING, logger="balora"):
        loaded = ModelUnderTest(str(tmp_path / "final")).load("cpu")
    assert "has no tokenizer, so that of" in caplog.text
    assert loaded.tokenizer("ab")["input_ids"] == tiny_tokenizer()("ab")["input_ids"]
    assert torch.equal(logits(loaded.model), logits(run.model))
    balora.export(tmp_path / "final", "lora", output=tmp_path / "lora")
    assert (tmp_path / "lora" / "tokenizer.json").is_file()
    balora.export(tmp_path / "final", "merged", output=tmp_path / "merged")
    assert peft.PeftConfig.from_pretrained(tmp_path / "lora").base_model_name_or_path == str(body)


def test_a_saved_full_model_without_tokenizer_is_refused_and_exported(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "base")
    run = trainer(balora.adapt(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), "full"), tmp_path / "run")
    run.train()
    run.save_model(str(tmp_path / "final"))
    with pytest.raises(BALoraError, match="has no tokenizer, and that of its pre-trained model cannot be found"):
        ModelUnderTest(str(tmp_path / "final")).load("cpu")
    assert balora.export(tmp_path / "final", "merged", output=tmp_path / "out").agreement.holds
