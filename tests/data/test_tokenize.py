"""Tokens and labels: learnt, cut and left-out parts. The tokenizer has one token per character."""

from __future__ import annotations

import logging

import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, processors

from balora.config.run_config import DataConfig
from balora.data.examples import load_examples
from balora.data.prompts import encode_prompt, render_prompt, separator_of, start_ids
from balora.data.tokenize import tokenize_examples
from balora.errors import BALoraError
from tiny import tiny_bert, tiny_tokenizer

EOS = 2


def pair(train: str, **more) -> DataConfig:
    return DataConfig(train=train, prompt="q", response="a", **more)


def tokenize(data: DataConfig, tokenizer, task: str = "generation", **more):
    return tokenize_examples(load_examples(data, task), tokenizer, data, task, **more)


def learnt(tokenizer, row) -> str:
    return tokenizer.decode([label for label in row["labels"] if label != -100], skip_special_tokens=False).replace(
        " ", ""
    )


def decoded(tokenizer, row) -> str:
    return tokenizer.decode(row["input_ids"]).replace(" ", "")


def ids(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def with_start(**config) -> transformers.PreTrainedTokenizerFast:
    """Tokenizer that adds <s> before and </s> after a text."""
    tokenizer = tiny_tokenizer(**config)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return tokenizer


def merging() -> transformers.PreTrainedTokenizerFast:
    """Tokenizer with tokens for `ab` and `bc`, which merges `ab` first."""
    pieces = ["<pad>", "<s>", "</s>", "<unk>", *"abc=", "ab", "bc"]
    model = models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=[("a", "b"), ("b", "c")], unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>")


# --- prompt and response ----------------------------------------------------------------------------------------------


def test_only_the_response_and_the_end_are_learnt(jsonl, tokenizer):
    row = tokenize(pair(jsonl({"q": "ask", "a": "yes"}), separator=">"), tokenizer).train[0]
    assert row["input_ids"] == [*ids(tokenizer, "ask>yes"), EOS]
    assert row["labels"] == [-100] * 4 + [*ids(tokenizer, "yes"), EOS]


def test_the_tokenizers_start_token_is_kept_and_its_end_token_not_doubled(jsonl):
    tokenizer = with_start()
    assert start_ids(tokenizer) == [1]
    row = tokenize(pair(jsonl({"q": "ask", "a": "yes"}), separator=">"), tokenizer).train[0]
    assert row["input_ids"] == [1, *ids(tokenizer, "ask>yes"), EOS]
    assert row["labels"][:5] == [-100] * 5


def test_the_prompt_has_the_same_tokens_at_inference(jsonl):
    tokenizer = with_start()
    data = pair(jsonl({"q": "ask", "a": "yes"}), prompt_template="alpaca")
    row = tokenize(data, tokenizer).train[0]
    prompt = encode_prompt(tokenizer, render_prompt("alpaca", "ask") + separator_of("alpaca"))
    assert row["input_ids"][: len(prompt)] == prompt
    assert row["labels"][len(prompt) - 1] == -100
    assert row["labels"][len(prompt)] != -100


def test_an_existing_end_token_is_not_repeated(jsonl):
    tokenizer = merging()
    row = tokenize(pair(jsonl({"q": "a", "a": "c</s>"}), separator="="), tokenizer).train[0]
    assert row["input_ids"].count(EOS) == 1


def test_no_token_spans_prompt_and_response(jsonl):
    tokenizer = merging()
    number = {name: tokenizer.convert_tokens_to_ids(name) for name in ("a", "b", "c", "ab", "bc", "=")}
    rows = tokenize(pair(jsonl({"q": "=a", "a": "bc"}, {"q": "=ab", "a": "c"}), separator=""), tokenizer).train
    assert ids(tokenizer, "=abc") == [number["="], number["ab"], number["c"]]
    assert rows[0]["input_ids"] == [number["="], number["a"], number["bc"], EOS]
    assert rows[0]["labels"] == [-100, -100, number["bc"], EOS]
    assert rows[1]["input_ids"] == [number["="], number["ab"], number["c"], EOS]


def test_templates():
    assert render_prompt("none", "2 {x} {input}?") == "2 {x} {input}?"
    assert render_prompt('{"q": {prompt}} {input}', "{input}", "I") == '{"q": {input}} I'
    alpaca = render_prompt("alpaca", "Do.")
    assert alpaca == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nDo.\n\n### Response:"
    )
    assert render_prompt("alpaca", "Do.", "   ") == alpaca
    assert "paired with an input" in render_prompt("alpaca", "Do.", "this")
    assert "### Input:\nthis\n\n### Response:" in render_prompt("alpaca", "Do.", "this")
    assert separator_of("none", "") == ""


def test_the_template_is_part_of_the_tokens(jsonl, tokenizer):
    rows = jsonl({"q": "ask", "a": "yes", "i": "more"}, {"q": "ask", "a": "yes", "i": ""})
    data = pair(rows, prompt_template="Q{prompt}I{input}A", input="i")
    assert [decoded(tokenizer, row) for row in tokenize(data, tokenizer).train] == [
        "QaskImoreAyes</s>",
        "QaskIAyes</s>",
    ]


def test_the_response_is_cut_on_the_right(jsonl, tokenizer):
    tokens = tokenize(
        pair(jsonl({"q": "ask", "a": "yes"}, {"q": "a", "a": "y"}), separator=">", max_length=6), tokenizer
    )
    assert [decoded(tokenizer, row) for row in tokens.train] == ["ask>ye", "a>y</s>"]
    assert learnt(tokenizer, tokens.train[0]) == "ye"
    assert tokens.notes == ("1 of 2 training rows are longer than 6 tokens (data.max_length) and were cut.",)


def test_exactly_max_length_is_not_cut(jsonl, tokenizer):
    tokens = tokenize(pair(jsonl({"q": "ask", "a": "yes"}), separator=">", max_length=8), tokenizer)
    assert tokens.notes == ()
    assert tokens.train[0]["labels"][-1] == EOS


def test_rows_without_a_target_are_left_out_and_counted(jsonl, tokenizer, caplog):
    path = jsonl({"q": "long prompt", "a": "x"}, {"q": "a", "a": "y"}, {"q": "abcde", "a": "z"})
    with caplog.at_level(logging.WARNING, logger="balora"):
        tokens = tokenize(pair(path, separator=">", max_length=6), tokenizer)
    assert [decoded(tokenizer, row) for row in tokens.train] == ["a>y</s>"]
    note = "2 of 3 training rows were left out, because they have nothing to learn within 6 tokens (data.max_length)."
    assert tokens.notes == (note,)
    assert [record.getMessage() for record in caplog.records] == [note]


def test_if_every_row_is_left_out_the_error_names_the_needed_length(jsonl, tokenizer):
    path = jsonl({"q": "a" * 20, "a": "x"}, {"q": "a" * 9, "a": "yes"}, {"q": "a" * 30, "a": "z"})
    with pytest.raises(BALoraError) as error:
        tokenize(pair(path, separator=">", max_length=10), tokenizer)
    assert str(error.value) == (
        "None of the 3 training rows keeps a token to learn from within 10 (data.max_length): the shortest has 14, and "
        "its response begins at token 11. Raise data.max_length to at least that if the model can take it, or shorten "
        "the prompts."
    )
    assert len(tokenize(pair(path, separator=">", max_length=11), tokenizer).train) == 1, (
        "the number in the message is enough"
    )


def test_if_every_evaluation_row_is_left_out_an_error_is_raised(jsonl, tokenizer):
    dev = jsonl({"q": "a" * 99, "a": "x"}, name="dev.jsonl")
    with pytest.raises(BALoraError, match="None of the 1 evaluation rows keeps"):
        tokenize(pair(jsonl({"q": "a", "a": "x"}), max_length=10, eval=dev), tokenizer)


def test_evaluation_rows_are_tokenized_like_training_rows(jsonl, tokenizer):
    rows = [{"q": "ask", "a": "yes"}, {"q": "a", "a": "no"}]
    tokens = tokenize(pair(jsonl(*rows), eval=jsonl(*rows, name="dev.jsonl")), tokenizer)
    assert tokens.eval.to_list() == tokens.train.to_list()


def test_the_limits_of_tokenizer_and_model_apply(jsonl, tokenizer):
    path = jsonl({"q": "a", "a": "y" * 50})
    assert len(tokenize(pair(path), tokenizer, max_positions=20).train[0]["input_ids"]) == 20
    tokenizer.model_max_length = 15
    tokens = tokenize(pair(path), tokenizer, max_positions=20)
    assert len(tokens.train[0]["input_ids"]) == 15
    assert "15 tokens (the tokenizer's model_max_length)" in tokens.notes[0]


def test_a_tokenizer_without_end_token_is_reported(jsonl, tokenizer):
    tokenizer.eos_token = None
    tokens = tokenize(pair(jsonl({"q": "ask", "a": "yes"}), separator=">"), tokenizer)
    assert decoded(tokenizer, tokens.train[0]) == "ask>yes"
    assert "no end token, so the model cannot learn to stop" in tokens.notes[0]


def test_many_rows_keep_their_order(jsonl, tokenizer, monkeypatch):
    from balora.data import example_writer, parallel_encoding

    path = jsonl(*({"q": "a", "a": str(i)} for i in range(23)))
    expected = tokenize(pair(path), tokenizer).train.to_list()
    monkeypatch.setattr(parallel_encoding, "BATCH", 5)
    monkeypatch.setattr(example_writer, "BATCH", 7)
    assert tokenize(pair(path), tokenizer).train.to_list() == expected


# --- plain text -------------------------------------------------------------------------------------------------------


def test_every_token_of_plain_text_is_learnt(jsonl):
    tokenizer = with_start()
    row = tokenize(DataConfig(train=jsonl({"t": "once"}), text="t"), tokenizer).train[0]
    assert row["input_ids"] == [1, *ids(tokenizer, "once"), EOS]
    assert row["labels"] == row["input_ids"]


def test_a_text_of_one_token_has_no_target(jsonl, tokenizer):
    tokenizer.eos_token = None
    with pytest.raises(BALoraError, match="None of the 1 training rows has a token to learn from"):
        tokenize(DataConfig(train=jsonl({"t": "x"}), text="t"), tokenizer)


# --- sequence to sequence ---------------------------------------------------------------------------------------------


def test_seq2seq_keeps_the_special_tokens_of_each_tokenizer(jsonl):
    source, target = tiny_tokenizer(), with_start()
    data = pair(jsonl({"q": "ask", "a": "yes"}))
    row = tokenize(data, source, "seq2seq", target_tokenizer=target).train[0]
    assert row == {"input_ids": ids(source, "ask"), "labels": [1, *ids(target, "yes"), EOS]}
    row = tokenize(data, target, "seq2seq").train[0]
    assert row["input_ids"] == [1, *ids(target, "ask"), EOS]


def test_seq2seq_cuts_prompt_and_response_and_keeps_the_end_tokens(jsonl):
    tokenizer = with_start()
    path = jsonl({"q": "question", "a": "answer"}, {"q": "q", "a": "a"})
    tokens = tokenize(pair(path, max_length=6, max_target_length=4), tokenizer, "seq2seq")
    assert tokens.train[0] == {
        "input_ids": [1, *ids(tokenizer, "ques"), EOS],
        "labels": [1, *ids(tokenizer, "an"), EOS],
    }
    assert tokens.notes == (
        "1 of 2 training prompts are longer than 6 tokens (data.max_length) and were cut.",
        "1 of 2 training responses are longer than 4 tokens (data.max_target_length) and were cut.",
    )
    both = tokenize(pair(path, max_length=4), tokenizer, "seq2seq").train[0]
    assert len(both["input_ids"]) == len(both["labels"]) == 4


def test_a_cut_response_is_reported_with_its_own_limit(jsonl):
    tokenizer = with_start()
    tokenizer.model_max_length = 64
    path = jsonl({"q": "q", "a": "answer"}, {"q": "q", "a": "a"})
    tokens = tokenize(pair(path, max_target_length=4), tokenizer, "seq2seq")
    assert tokens.notes == (
        "1 of 2 training responses are longer than 4 tokens (data.max_target_length) and were cut.",
    )


# --- classification and regression ------------------------------------------------------------------------------------


def test_texts_and_classes(jsonl):
    tokenizer = with_start()
    path = jsonl({"t": "good", "l": "pos"}, {"t": "a long and bad one", "l": "neg"})
    tokens = tokenize(DataConfig(train=path, text="t", label="l", max_length=6), tokenizer, "classification")
    assert tokens.train.to_list() == [
        {"input_ids": [1, *ids(tokenizer, "good"), EOS], "labels": 1},
        {"input_ids": [1, *ids(tokenizer, "a lo"), EOS], "labels": 0},
    ]
    assert tokens.notes == ("1 of 2 training rows are longer than 6 tokens (data.max_length) and were cut.",)


def test_the_longer_text_of_a_pair_is_cut(jsonl):
    tokenizer = with_start()
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    data = DataConfig(train=jsonl({"t": "long text", "u": "uv", "s": 2.5}), text=("t", "u"), score="s", max_length=8)
    row = tokenize(data, tokenizer, "regression").train[0]
    assert decoded(tokenizer, row) == "<s>lon</s>uv</s>"
    assert row["token_type_ids"] == [0] * 5 + [1] * 3
    assert row["labels"] == 2.5


def test_a_model_accepts_the_batches(jsonl):
    from balora.data.collate import make_collator

    tokenizer = with_start()
    rows = ({"t": "x" * n, "u": "y", "l": n % 3} for n in range(1, 6))
    data = DataConfig(train=jsonl(*rows), text=("t", "u"), label="l")
    tokens = tokenize(data, tokenizer, "classification")
    batch = make_collator("classification", tokenizer)(tokens.train.to_list())
    assert tiny_bert(num_labels=3)(**batch).logits.shape == (5, 3)
