"""Tokens in the page's coloured text keep the space before them."""

from __future__ import annotations

from transformers import AutoTokenizer

from balora.auditing.drift import Drift


def test_pieces_of_a_sentencepiece_text_join_to_the_text(stories):
    tokenizer = AutoTokenizer.from_pretrained(stories)
    drift = Drift.__new__(Drift)
    drift._decode, drift._raw = tokenizer.decode, tokenizer.convert_ids_to_tokens
    ids = tokenizer("One day, a cat went home.", add_special_tokens=False)["input_ids"]
    assert "".join(map(drift._piece, ids)).strip() == "One day, a cat went home."
    assert "".join(tokenizer.decode([token]) for token in ids) != "One day, a cat went home."
