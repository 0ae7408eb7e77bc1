"""Multilingual encoder-decoders are trained and generate in the languages that the config names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoTokenizer, NllbTokenizer

import balora
from balora.config.run_config import RunConfig
from balora.data.collate import make_collator
from balora.errors import BALoraError
from balora.evaluation.engines.transformers import Sampling, TransformersGenerator
from balora.evaluation.model_under_test import ModelUnderTest
from balora.loading.languages import is_multilingual, known_languages, set_answer_language, set_languages
from balora.loading.pretrained import load_model, load_tokenizer
from balora.loading.source import Location, ModelSource
from balora.training.run import run
from small_runs import trainer
from tiny import pair_rows, tiny_bart, tiny_tokenizer

SIZES = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64, "dropout": 0.0, "attention_dropout": 0.0,
    "activation_dropout": 0.0, "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0,
}  # fmt: skip
CODES = ["eng_Latn", "deu_Latn", "fra_Latn"]


def nllb_tokenizer(codes=CODES) -> NllbTokenizer:
    letters = [chr(code) for code in range(97, 123)]
    vocabulary = {piece: i for i, piece in enumerate(["<s>", "<pad>", "</s>", "<unk>", "▁", *letters])}
    return NllbTokenizer(vocab=vocabulary, merges=[], extra_special_tokens=list(codes))


def tiny(family: str, **settings):
    """Make an encoder-decoder with scaled embeddings."""
    config = getattr(transformers, f"{family}Config")(vocab_size=97, **{**SIZES, **settings})
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForConditionalGeneration")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3.0)
    return model.eval()


@pytest.fixture(scope="module")
def nllb(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("nllb")
    tiny("M2M100").save_pretrained(folder)
    nllb_tokenizer().save_pretrained(folder)
    return folder


def source(folder, **languages) -> ModelSource:
    return ModelSource(model=Location(str(folder)), task="seq2seq", **languages)


PAIR = {"source_language": "eng_Latn", "target_language": "deu_Latn"}


def test_texts_are_marked_with_their_languages(nllb):
    tokenizer = load_tokenizer(source(nllb, **PAIR))
    encoded = tokenizer("ab", text_target="cd")
    english, german = tokenizer.convert_tokens_to_ids(["eng_Latn", "deu_Latn"])
    assert (encoded["input_ids"][0], encoded["labels"][0]) == (english, german)
    assert load_model(source(nllb, **PAIR), tokenizer=tokenizer).generation_config.forced_bos_token_id == german


@pytest.mark.parametrize(
    ("languages", "words"),
    [
        ({}, r"data\.target_language is not set.*deu_Latn, eng_Latn"),
        ({"source_language": "eng_Latn", "target_language": "de"}, r"language 'de' \(data\.target_language\)"),
        ({"source_language": "deu_Latm", "target_language": "deu_Latn"}, r"'deu_Latm'.*Did you mean 'deu_Latn'"),
        ({"source_language": "ab", "target_language": "deu_Latn"}, r"language 'ab' \(data\.source_language\)"),
    ],
)
def test_missing_and_unknown_languages_are_refused(nllb, languages, words):
    with pytest.raises(BALoraError, match=words):
        load_tokenizer(source(nllb, **languages))


def test_a_tokenizer_without_languages_refuses_them(tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path)
    tiny_bart().config.save_pretrained(tmp_path)
    with pytest.raises(
        BALoraError, match=r"does not mark texts.*Leave out data\.source_language and data\.target_language"
    ):
        load_tokenizer(source(tmp_path, **PAIR))
    assert load_tokenizer(source(tmp_path))


def test_the_config_takes_languages_for_seq2seq_only():
    values = {"model": "m", "output": "o", "data": {"train": "d.jsonl", "prompt": "p", "response": "r", **PAIR}}
    assert ModelSource.from_config(RunConfig.from_dict({**values, "task": "seq2seq"})).target_language == "deu_Latn"
    with pytest.raises(BALoraError, match="source_language"):
        RunConfig.from_dict({**values, "task": "generation"})


class M2M100Like:
    """Mark texts as M2M100's tokenizer does, which looks names up in a dictionary."""

    name_or_path, unk_token_id, eos_token_id, bos_token_id, pad_token_id = "m2m", 3, 2, 0, 1

    def __init__(self, src_lang=None, tgt_lang=None) -> None:
        self.lang_code_to_token = {"en": "__en__", "de": "__de__"}
        self.init_kwargs, self.src_lang, self.tgt_lang = {}, "en", None
        self.prefix_tokens, self.suffix_tokens = [10], [2]

    def set_src_lang_special_tokens(self, language) -> None:
        self.prefix_tokens = [{"__en__": 10, "__de__": 11}[self.lang_code_to_token[language]]]

    def _switch_to_target_mode(self) -> None:
        self.set_src_lang_special_tokens(self.tgt_lang)

    def _switch_to_input_mode(self) -> None:
        self.set_src_lang_special_tokens(self.src_lang)


def test_a_tokenizer_that_looks_languages_up_is_treated_the_same():
    tokenizer = M2M100Like()
    assert is_multilingual(tokenizer) and known_languages(tokenizer) == ["de", "en"]
    with pytest.raises(BALoraError, match=r"'xx' \(data\.target_language\). It knows de, en"):
        set_languages(tokenizer, source("m", source_language="en", target_language="xx"))
    set_languages(tokenizer, source("m", source_language="en", target_language="de"))
    model = tiny("M2M100")
    set_answer_language(model, tokenizer)
    assert model.generation_config.forced_bos_token_id == 11


@pytest.mark.parametrize(("kind", "prefixed"), [("MBart50Tokenizer", True), ("MBartTokenizer", False)])
def test_mbarts_own_tokenizers(kind, prefixed):
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", *map(chr, range(97, 123))]
    tokenizer = getattr(transformers, kind)(vocab=[(piece, 0.0) for piece in pieces])
    with pytest.raises(BALoraError, match=r"source_language and data\.target_language are not set"):
        set_languages(tokenizer, source("m"))
    with pytest.raises(BALoraError, match="does not know the language 'German'"):
        set_languages(tokenizer, source("m", source_language="en_XX", target_language="German"))
    set_languages(tokenizer, source("m", source_language="en_XX", target_language="de_DE"))
    german, model = tokenizer.convert_tokens_to_ids("de_DE"), tiny("MBart")
    assert tokenizer("ab", text_target="cd")["labels"][0 if prefixed else -1] == german
    set_answer_language(model, tokenizer)
    name = "forced_bos_token_id" if prefixed else "decoder_start_token_id"
    assert getattr(model.generation_config, name) == german


def test_a_language_that_the_tokenizer_decides_is_said(nllb, caplog):
    load_tokenizer(source(nllb, target_language="deu_Latn"))
    assert "decides the languages that the config does not name: data.source_language is eng_Latn." in caplog.text


def test_mbart_starts_with_the_language_that_ends_the_labels():
    """mBART-25 writes `text </s> language`; its decoder starts with the language."""
    model, tokenizer = tiny("MBart"), M2M100Like()
    tokenizer.prefix_tokens, tokenizer.suffix_tokens, tokenizer.tgt_lang = [], [2, 11], "de"
    tokenizer._switch_to_target_mode = tokenizer._switch_to_input_mode = lambda: None
    set_answer_language(model, tokenizer)
    assert (model.generation_config.decoder_start_token_id, model.generation_config.forced_bos_token_id) == (11, None)
    collate = make_collator("seq2seq", tiny_tokenizer(), model)
    batch = collate([{"input_ids": [5, 2, 10], "labels": [7, 8, 2, 11]}])
    assert batch["decoder_input_ids"].tolist() == [[11, 7, 8, 2]]


@pytest.mark.parametrize("family", ["M2M100", "Blenderbot", "BlenderbotSmall", "MBart", "NllbMoe"])
def test_a_family_without_a_shift_of_its_own_is_trained(family, tmp_path):
    settings = {"num_experts": 4, "encoder_sparse_step": 2, "decoder_sparse_step": 2} if family == "NllbMoe" else {}
    model = balora.adapt(tiny(family, **settings), rank=4)
    rows = pair_rows(8)
    run_ = trainer(model, tmp_path, rows=rows)
    batch = run_.data_collator(rows[:4])
    labels = batch.pop("labels")
    own = model.get_base_model()(**batch, labels=labels.clone()).loss
    loss, _ = run_.step.evaluate(model, dict(batch), labels, keep_logits=False)
    torch.testing.assert_close(loss, own, atol=1e-5, rtol=1e-5)
    assert run_.train().metrics["train_loss"] > 0


def test_a_run_keeps_its_languages_in_its_answers_and_exports(nllb, tmp_path):
    rows = [{"word": a, "sound": b} for a, b in (("ab", "cd"), ("ef", "gh"), ("ij", "kl"), ("mn", "op"))]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = RunConfig.from_dict({
        "model": str(nllb), "task": "seq2seq", "output": str(tmp_path / "run"), "method": {"rank": 4},
        "data": {"train": str(tmp_path / "rows.jsonl"), "prompt": "word", "response": "sound", **PAIR},
        "training": {"max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "report_to": "none"},
    })  # fmt: skip
    trained = run(config).trainer
    german = nllb_tokenizer().convert_tokens_to_ids("deu_Latn")
    assert trained.train_dataset["labels"][0][0] == german
    loaded = ModelUnderTest(str(tmp_path / "run")).load("cpu")
    prompt = loaded.tokenizer("ab")["input_ids"]
    assert prompt[0] == loaded.tokenizer.convert_tokens_to_ids("eng_Latn")
    output = loaded.model.generate(input_ids=torch.tensor([prompt]), max_new_tokens=3, do_sample=False)
    assert output[0, 1] == german
    balora.export(tmp_path / "run", "lora", output=tmp_path / "lora")
    card = (tmp_path / "lora" / "README.md").read_text()
    assert f"model.generation_config.forced_bos_token_id = {german}\n" in card
    balora.export(tmp_path / "run", "merged", output=tmp_path / "merged")
    merged = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "merged")
    assert merged.generation_config.forced_bos_token_id == german
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").tgt_lang == "deu_Latn"


def test_evaluations_leave_out_the_models_own_decoding_settings(tmp_path):
    """Blenderbot asks for at least 20 tokens and no repeated trigram."""
    model = tiny("Blenderbot")
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    loaded = ModelUnderTest(str(tmp_path)).load("cpu")
    generator = TransformersGenerator(loaded, 2)
    prompts = [[5, 6, 7, 2], [9, 2]]
    expected = dict(generator.generate(prompts, Sampling(12)))
    for key, value in {"min_length": 8, "no_repeat_ngram_size": 1, "repetition_penalty": 5.0}.items():
        setattr(loaded.model.generation_config, key, value)
    assert dict(generator.generate(prompts, Sampling(12))) == expected
