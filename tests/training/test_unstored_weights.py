"""Frozen weights that the pre-trained checkpoint lacks (a random layer, a resized embedding) are saved, loaded and exported."""

from __future__ import annotations

import pytest
import torch
import transformers
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import balora
from balora import BALoraError
from balora.checkpoints import checkpoint as ckpt
from balora.evaluation.model_under_test import ModelUnderTest
from families import tiny_deberta
from small_runs import trainer
from tiny import labelled_rows, tiny_bert, tiny_llama, tiny_t5, tiny_tokenizer, token_rows

TOKENS = torch.arange(4, 12)[None]


def tiny_modernbert():
    config = transformers.ModernBertConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_labels=3,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2, max_position_embeddings=64,
        reference_compile=False,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.ModernBertForSequenceClassification(config).eval()


def logits(model):
    extra = {"decoder_input_ids": TOKENS} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model.eval()(TOKENS, **extra).logits


HEADLESS = {"DeBERTa": tiny_deberta, "ModernBERT": tiny_modernbert, "BERT": tiny_bert}


@pytest.fixture
def headless(tmp_path, request):
    """Save a model as its pre-training leaves it: without head and pooler."""
    whole = HEADLESS[request.param]()
    body = whole.base_model
    if request.param == "BERT":
        body.pooler = None
    body.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def classifier(base, folder, method="balora"):
    torch.manual_seed(123)  # not the seed that balora.load uses
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    run = trainer(balora.adapt(model, method, rank=4), folder, config=None, rows=labelled_rows(), learning_rate=3e-2)
    run.train()
    return run


@pytest.mark.parametrize(
    ("headless", "method"),
    [("DeBERTa", "balora"), ("DeBERTa", "dora"), ("ModernBERT", "balora"), ("ModernBERT", "lora"), ("BERT", "pissa")],
    indirect=["headless"],
)
def test_a_random_frozen_layer_is_saved_with_the_run(headless, tmp_path, method):
    run = classifier(headless, tmp_path / "run", method)
    run.save_model(str(tmp_path / "final"))
    for base in (None, headless):
        assert torch.equal(logits(balora.load(tmp_path / "final", base=base)), logits(run.model))
    assert (tmp_path / "final" / ckpt.FROZEN).is_file()
    report = balora.export(tmp_path / "final", "merged" if method == "dora" else "lora", output=tmp_path / "out")
    assert report.agreement.holds


@pytest.mark.parametrize("headless", ["DeBERTa"], indirect=True)
def test_a_random_frozen_layer_that_was_not_saved_is_refused(headless, tmp_path):
    run = classifier(headless, tmp_path / "run")
    run.save_model(str(tmp_path / "final"))
    (tmp_path / "final" / ckpt.FROZEN).unlink()
    (tmp_path / "final" / ckpt.MANIFEST).unlink()
    ckpt.write_manifest(tmp_path / "final", ckpt.RESULT_FILES)
    with pytest.raises(BALoraError, match=r"pooler\.dense.* differs"):
        balora.load(tmp_path / "final")


# --- resized embeddings ------------------------------------------------------------------------------------------------


def resized(base, folder, when: str, size: int, method: str = "balora", **changes):
    model = AutoModelForCausalLM.from_pretrained(base)
    if when == "before":
        model.resize_token_embeddings(size)
    model = balora.adapt(model, method, rank=4)
    if when == "after":
        model.resize_token_embeddings(size)
    run = trainer(model, folder, rows=token_rows(vocab=min(size, 97)), **changes)
    run.train()
    return run


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def llama(tmp_path, request):
    tiny_llama(tie_word_embeddings=request.param).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize(("when", "size"), [("before", 104), ("after", 104), ("before", 90)])
def test_a_model_with_resized_embeddings_is_loaded_and_exported(llama, tmp_path, when, size):
    run = resized(llama, tmp_path / "run", when, size)
    expected = logits(run.model)
    assert expected.shape[-1] == size
    run.save_model(str(tmp_path / "final"))
    torch.rand(3)
    assert torch.equal(logits(balora.load(tmp_path / "final")), expected)
    report = balora.export(run.model, "lora", output=tmp_path / "memory", initial=run.teacher)
    assert f"resize_token_embeddings({size})" in report.describe()
    balora.export(tmp_path / "final", "lora", output=tmp_path / "lora")
    balora.export(tmp_path / "final", "merged", output=tmp_path / "merged")
    for folder in ("memory", "lora"):
        assert f"base.resize_token_embeddings({size})\n" in (tmp_path / folder / "README.md").read_text()
        plain = AutoModelForCausalLM.from_pretrained(llama)
        plain.resize_token_embeddings(size)
        torch.testing.assert_close(
            logits(PeftModel.from_pretrained(plain, tmp_path / folder)), expected, atol=1e-4, rtol=1e-4
        )
        with pytest.raises(RuntimeError, match="size mismatch"):
            PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama), tmp_path / folder)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged), expected, atol=1e-4, rtol=1e-4)


def test_a_model_with_more_tokens_and_its_tokenizer_is_evaluated(llama, tmp_path):
    run = resized(llama, tmp_path / "run", "before", 104)
    run.save_model(str(tmp_path / "final"))
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"<t{number}>" for number in range(7)])
    tokenizer.save_pretrained(tmp_path / "final")
    found = ModelUnderTest(str(tmp_path / "final")).load("cpu").model
    assert torch.equal(logits(found), logits(run.model))


def test_a_resized_encoder_decoder_is_exported(tmp_path):
    tiny_t5().save_pretrained(tmp_path / "base")
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "base")
    model.resize_token_embeddings(110)
    model = balora.adapt(model, rank=4)
    run = trainer(model, tmp_path / "run")
    run.train()
    run.save_model(str(tmp_path / "final"))
    assert torch.equal(logits(balora.load(tmp_path / "final")), logits(run.model))
    assert balora.export(tmp_path / "final", "lora", output=tmp_path / "lora").agreement.holds


@pytest.mark.parametrize("method", ["qlora", "qbalora"])
def test_a_resized_model_in_few_bits_is_loaded_and_exported(tmp_path, method):
    pytest.importorskip("bitsandbytes")
    tiny_llama().save_pretrained(tmp_path / "base")
    run = resized(tmp_path / "base", tmp_path / "run", "before", 104, method)
    run.save_model(str(tmp_path / "final"))
    assert torch.equal(logits(balora.load(tmp_path / "final")), logits(run.model))
    report = balora.export(tmp_path / "final", "lora", output=tmp_path / "lora")
    assert report.agreement.holds and "104" in report.note and "bits" in report.note
    assert balora.export(tmp_path / "final", "merged", output=tmp_path / "merged").agreement.holds
