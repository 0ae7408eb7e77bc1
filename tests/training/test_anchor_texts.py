"""Texts as anchors: their special tokens, and the mistakes that `train` and `validate` both find before anything is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from balora import Anchors, BALoraError
from balora.training.anchors.anchor_source import check_anchors, text_rows


@pytest.fixture
def llama(stories: Path):
    return AutoTokenizer.from_pretrained(stories)


def ids_of(tokenizer, text: str, **options) -> list[int]:
    (row,) = text_rows([text], tokenizer, 100, 10, 1, **{"task": "generation", **options})
    return row["input_ids"]


def test_the_text_of_a_special_token_is_plain_text(llama):
    ids = ids_of(llama, "One day </s> a cat")
    assert ids[0] == llama.bos_token_id and llama.eos_token_id not in ids
    assert "</s>" in llama.decode(ids)


def test_a_rendered_conversation_keeps_its_special_tokens_and_gets_no_second_start(llama):
    ids = ids_of(llama, "<s>One day</s>", rendered=True)
    assert ids.count(llama.bos_token_id) == 1 and ids[-1] == llama.eos_token_id


def test_a_classifiers_text_is_cut_off_between_its_special_tokens(shared_dir):
    tokenizer = AutoTokenizer.from_pretrained(shared_dir / "faults" / "models" / "bert")
    ids = ids_of(tokenizer, "one day a cat went home " * 50, task="classification")
    assert (ids[0], ids[-1], len(ids)) == (tokenizer.cls_token_id, tokenizer.sep_token_id, 100)


MISTAKES = {
    "anchor={generate: 16, tokens: 99999}": "anchor.tokens is 99,999, and the model reads at most",
    "anchor={text: nowhere.jsonl}": "anchor.text: There is no data file nowhere.jsonl",
    "anchor={text: texts.jsonl, column: txet}": "has no column 'txet'",
    "anchor=kept.safetensors": "there is no file kept.safetensors",
    "anchor=genrated": "Did you mean 'generated'?",
}


@pytest.mark.parametrize("change", MISTAKES)
def test_train_and_validate_find_the_same_mistakes_before_anything_is_written(
    balora, config: Path, tmp_path: Path, monkeypatch, change: str
):
    monkeypatch.chdir(tmp_path)
    Path("texts.jsonl").write_text(json.dumps({"text": "one day"}) + "\n", encoding="utf-8")
    for verb in ("train", "validate"):
        outcome = balora(verb, config, "output=new", change)
        said = " ".join((outcome.out + outcome.err).split())
        assert outcome.status == 2 and MISTAKES[change] in said and "data.train" not in said.partition("anchor")[2]
        assert not Path("new").exists()


def test_a_sampled_sequence_needs_room_for_its_opening(llama, stories: Path):
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(stories)
    most = config.max_position_embeddings
    check_anchors(Anchors.generated(16, tokens=most - 1), "generation", llama, config)
    with pytest.raises(BALoraError, match="1 of them before the sampled ones"):
        check_anchors(Anchors.generated(16, tokens=most), "generation", llama, config)
