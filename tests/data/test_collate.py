"""Batches: padded on the right, masked by length, and shifted only once."""

from __future__ import annotations

import logging
import types

import pytest
import torch

from balora.data.collate import ensure_pad_token, make_collator
from balora.errors import BALoraError
from tiny import tiny_bart, tiny_tokenizer


def test_causal_batches(tokenizer):
    batch = make_collator("generation", tokenizer)(
        [{"input_ids": [5, 6, 2], "labels": [-100, 6, 2]}, {"input_ids": [7], "labels": [7]}]
    )
    assert {name: values.tolist() for name, values in batch.items()} == {
        "input_ids": [[5, 6, 2], [7, 0, 0]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
        "labels": [[-100, 6, 2], [7, -100, -100]],
    }
    assert all(values.dtype == torch.int64 for values in batch.values())


def test_padding_is_on_the_right_even_if_the_tokenizer_pads_on_the_left(tokenizer):
    tokenizer.padding_side = "left"
    batch = make_collator("generation", tokenizer)(
        [{"input_ids": [5, 6], "labels": [5, 6]}, {"input_ids": [7], "labels": [7]}]
    )
    assert batch["input_ids"][1].tolist() == [7, 0]


def test_an_end_token_that_is_also_the_pad_token_is_learnt():
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    ensure_pad_token(tokenizer)
    batch = make_collator("generation", tokenizer)(
        [{"input_ids": [5, 2], "labels": [5, 2]}, {"input_ids": [7], "labels": [7]}]
    )
    assert batch["labels"].tolist() == [[5, 2], [7, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert batch["input_ids"].tolist() == [[5, 2], [7, 2]]


def test_classes_and_scores(tokenizer):
    rows = [
        {"input_ids": [5, 6], "token_type_ids": [0, 1], "labels": 1},
        {"input_ids": [7], "token_type_ids": [0], "labels": 0},
    ]
    batch = make_collator("classification", tokenizer)(rows)
    assert batch["token_type_ids"].tolist() == [[0, 1], [0, 0]]
    assert (batch["labels"].tolist(), batch["labels"].dtype) == ([1, 0], torch.int64)
    batch = make_collator("regression", tokenizer)(
        [{"input_ids": [5], "labels": 2.5}, {"input_ids": [6], "labels": 3.0}]
    )
    assert (batch["labels"].tolist(), batch["labels"].dtype) == ([2.5, 3.0], torch.float32)
    assert "token_type_ids" not in batch


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_the_decoder_input_equals_that_of_the_model(tokenizer, name):
    """Check that our decoder_input_ids with unshifted labels give the loss that the model computes from labels alone."""
    if name == "bart":
        model = tiny_bart()
    else:
        from transformers import T5Config, T5ForConditionalGeneration

        config = T5Config(vocab_size=97, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, dropout_rate=0.0,
                          decoder_start_token_id=0)  # fmt: skip
        model = T5ForConditionalGeneration(config).eval()
    rows = [{"input_ids": [5, 6, 2], "labels": [1, 9, 8, 2]}, {"input_ids": [7, 2], "labels": [1, 4, 2]}]
    batch = make_collator("seq2seq", tokenizer, model)(rows)
    assert batch["labels"].tolist() == [[1, 9, 8, 2], [1, 4, 2, -100]]
    start = model.config.decoder_start_token_id
    assert batch["decoder_input_ids"].tolist() == [[start, 1, 9, 8], [start, 1, 4, 2]]
    own = model.prepare_decoder_input_ids_from_labels(batch["labels"])
    assert torch.equal(batch["decoder_input_ids"], own)
    labels = batch.pop("labels")
    ours = torch.nn.functional.cross_entropy(model(**batch).logits.flatten(0, 1), labels.flatten())
    del batch["decoder_input_ids"]
    torch.testing.assert_close(ours, model(**batch, labels=labels).loss)


def test_a_model_without_start_token_makes_the_decoder_input_itself(tokenizer):
    config = types.SimpleNamespace(decoder_start_token_id=None, pad_token_id=0)
    model = types.SimpleNamespace(
        config=config, prepare_decoder_input_ids_from_labels=lambda labels: labels.roll(1, -1)
    )
    batch = make_collator("seq2seq", tokenizer, model)([{"input_ids": [5], "labels": [8, 9]}])
    assert batch["decoder_input_ids"].tolist() == [[9, 8]]
    with pytest.raises(BALoraError, match="has no decoder_start_token_id"):
        make_collator("seq2seq", tokenizer, types.SimpleNamespace(config=config))


def test_an_existing_pad_token_is_unchanged(tokenizer):
    assert ensure_pad_token(tokenizer) is None
    assert tokenizer.pad_token == "<pad>"


def test_the_end_token_replaces_a_missing_pad_token(tokenizer, caplog):
    tokenizer.pad_token = None
    with caplog.at_level(logging.WARNING, logger="balora"):
        notice = ensure_pad_token(tokenizer)
    assert notice == "The tokenizer has no pad token; its eos_token '</s>' is used, masked out of attention and loss."
    assert [record.getMessage() for record in caplog.records] == [notice]
    assert tokenizer.pad_token_id == 2
    assert ensure_pad_token(tokenizer) is None


def test_the_unknown_token_replaces_a_missing_pad_and_end_token(tokenizer):
    tokenizer.pad_token = tokenizer.eos_token = None
    assert "unk_token '<unk>'" in ensure_pad_token(tokenizer)
    tokenizer.pad_token = tokenizer.unk_token = None
    with pytest.raises(BALoraError, match="and no end or unknown token"):
        ensure_pad_token(tokenizer)


def test_labels_stay_as_they_are_if_the_model_changes_its_argument(tokenizer):
    model = tiny_bart()
    model.config.decoder_start_token_id = None

    def shift_in_place(labels: torch.Tensor) -> torch.Tensor:  # as FSMT does
        return labels.masked_fill_(labels == -100, 0).roll(1, -1)

    model.prepare_decoder_input_ids_from_labels = shift_in_place
    rows = [{"input_ids": [5, 6], "labels": [7, 8, 2]}, {"input_ids": [5], "labels": [9]}]
    batch = make_collator("seq2seq", tokenizer, model)(rows)
    assert batch["labels"].tolist() == [[7, 8, 2], [9, -100, -100]]
    assert batch["decoder_input_ids"].tolist() == [[2, 7, 8], [0, 9, 0]]
