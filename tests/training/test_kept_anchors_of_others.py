"""Kept anchors of another model or in another form, lists of files, and other anchors that would be used in silence."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from transformers import LlamaConfig

from balora import Anchors, BALoraError
from balora.anchoring.rows import AnchorRows, vocabulary_digest
from balora.data.anchor_texts import read_anchor_texts
from balora.data.files.paragraphs import read_paragraphs
from balora.training.anchors.anchor_source import check_anchors
from tiny import tiny_tokenizer

ROWS = [{"input_ids": [1, 5, 6, 7]} for _ in range(4)]
FOREIGN = {
    "a negative token": ([{"input_ids": [1, -5]}] * 4, "generation", {}, "has token -5"),
    "a token beyond the vocabulary": ([{"input_ids": [1, 97]}] * 4, "generation", {}, "has token 97"),
    "longer than the positions": ([{"input_ids": [1] * 65}] * 4, "generation", {}, "65 tokens, and the model reads"),
    "another tokenizer": (ROWS, "generation", {"tokenizer": "other"}, "another tokenizer"),
    "targets of an encoder-decoder": (
        [{**row, "labels": [5]} for row in ROWS],
        "generation",
        {},
        "another form",
    ),
    "no targets": (ROWS, "seq2seq", {}, "another form"),
    "no tokens": ([{"labels": [1, 2]}] * 4, "generation", {}, "a row without tokens"),
}


def check(path: Path, task: str = "generation") -> None:
    config = LlamaConfig(vocab_size=97, max_position_embeddings=64)
    check_anchors(Anchors(text=str(path), tokens=32), task, tiny_tokenizer(), config)


@pytest.mark.parametrize("case", FOREIGN)
def test_kept_anchors_that_do_not_fit_are_refused(tmp_path: Path, case: str):
    rows, task, facts, message = FOREIGN[case]
    path = tmp_path / "kept.safetensors"
    AnchorRows(rows, 0.25, 1, facts).save(path)
    with pytest.raises(BALoraError, match=message):
        check(path, task)


def test_kept_anchors_that_fit_are_taken(tmp_path: Path):
    path = tmp_path / "kept.safetensors"
    AnchorRows(ROWS, 0.25, 1, {"tokenizer": vocabulary_digest(tiny_tokenizer())}).save(path)
    check(path)


@pytest.mark.parametrize("names", [["general.jsonl", "more.jsonl"], ["data/a"], ["owner/name"], ["~/texts.txt"]])
def test_a_list_of_files_is_not_read_as_texts(names: list[str]):
    with pytest.raises(BALoraError, match="the entries of a list are texts"):
        Anchors.from_value({"text": names})


def test_a_list_of_texts_is_read():
    assert Anchors.from_value({"text": ["One day, a cat and/or a dog.", "The end."]}) is not None


def test_a_share_that_never_ends_is_refused():
    with pytest.raises(BALoraError, match="at most 100"):
        Anchors(generate=8, share=1e9)


def test_rows_without_text_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "general.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("one day", None, "the end", None)))
    with caplog.at_level(logging.WARNING, "balora"):
        assert len(read_anchor_texts(Anchors(text=str(path)), tiny_tokenizer())) == 2
    assert "2 of 4 rows" in caplog.text


def test_a_text_file_is_read_in_utf_8_only(tmp_path: Path):
    path = tmp_path / "general.txt"
    path.write_bytes("\ufeffone day\r\n \r\nthe end\n".encode())
    assert read_paragraphs(path) == ["one day", "the end"]
    path.write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(BALoraError, match=r"not UTF-8 text \(byte 3\)"):
        read_paragraphs(path)
