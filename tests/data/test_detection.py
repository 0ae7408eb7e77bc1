"""The form of data, recognised from columns and rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from balora.data.conversations.chat_templates import set_chat_template
from balora.data.conversations.completion import complete, sample_of, task_for
from balora.data.conversations.rendering import render_chat, render_marked
from balora.data.detection import Detected, detect
from balora.errors import BALoraError
from tiny import tiny_tokenizer

OPENAI = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
SHAREGPT = [{"from": "human", "value": "Hi."}, {"from": "gpt", "value": "Hello."}]


def found(*rows: dict) -> list[dict]:
    return [dict(form.keys) for form in detect(list(rows[0]), rows)]


@pytest.mark.parametrize(
    ("row", "keys"),
    [
        ({"id": 1, "messages": OPENAI}, {"messages": "messages"}),
        ({"conversations": SHAREGPT}, {"messages": "conversations"}),
        ({"talk": json.dumps(OPENAI)}, {"messages": "talk"}),
        ({"prompt": "Hi.", "messages": OPENAI}, {"messages": "messages"}),
        ({"instruction": "a", "input": "b", "output": "c"},
         {"prompt": "instruction", "input": "input", "response": "output", "prompt_template": "alpaca"}),
        ({"instruction": "a", "input": "", "output": "c"},
         {"prompt": "instruction", "response": "output", "prompt_template": "alpaca"}),
        ({"Prompt": "a", "completion": "b"}, {"prompt": "Prompt", "response": "completion"}),
        ({"question": "a", "answer": "b"}, {"prompt": "question", "response": "answer"}),
        ({"text": "a story", "url": "x"}, {"text": "text"}),
    ],
)  # fmt: skip
def test_a_form_is_recognised(row: dict, keys: dict) -> None:
    assert found(row) == [keys]


def test_classes_scores_and_pairs_of_texts_are_told_apart() -> None:
    texts = [{"sentence": f"s{i}", "label": i % 2} for i in range(8)]
    assert found(*texts) == [{"text": "sentence", "label": "label"}]
    scores = [{"sentence1": "a", "sentence2": "b", "label": i / 4} for i in range(8)]
    assert found(*scores) == [{"text": ("sentence1", "sentence2"), "score": "label"}]
    free = [{"text": f"s{i}", "label": f"a title of its own {i}"} for i in range(8)]
    assert found(*free) == []


def test_data_without_a_known_form_have_none() -> None:
    assert found({"question": "a", "passage": "b", "answer": True}) == []
    assert found({"messages": [{"text": "no role"}]}) == []


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("labels", [[[0, 1], [1]] * 2, ["a", "b", "c", "d"]], ids=["lists", "another in each row"])
def test_a_text_with_labels_that_are_no_classes_is_not_taken_for_plain_text(labels: list) -> None:
    assert found(*({"text": f"row {i}", "label": label} for i, label in enumerate(labels))) == []
    assert found({"text": "a row", "label": None}) == [{"text": "text"}]


def test_a_config_is_completed_where_the_form_is_unmistakable(tmp_path: Path) -> None:
    chat = write(tmp_path / "chat.jsonl", [{"conversations": SHAREGPT}])
    values, said = complete({"model": "m", "data": {"train": chat, "max_length": 64}, "output": "o"})
    assert values["data"] == {"train": chat, "max_length": 64, "messages": "conversations"}
    assert values["task"] == "generation"
    assert said[0] == "Data: ShareGPT conversations (data.messages: conversations)."
    given = {"model": "m", "data": {"train": chat, "text": "conversations"}}
    assert complete(given) == (given, [])


def test_a_config_with_two_readings_is_refused(tmp_path: Path) -> None:
    pairs = write(tmp_path / "p.jsonl", [{"chosen": OPENAI, "rejected": OPENAI}])
    with pytest.raises(BALoraError, match=r"several ways.*data.messages: chosen.*data.messages: rejected"):
        complete({"model": "m", "data": {"train": pairs}})


def test_an_own_template_decides_about_the_input(tmp_path: Path) -> None:
    rows = write(tmp_path / "a.jsonl", [{"instruction": "a", "input": "b", "output": "c"}])
    values, _ = complete({"model": "m", "data": {"train": rows, "prompt_template": "Q: {prompt}"}})
    assert "input" not in values["data"]
    assert values["data"]["prompt_template"] == "Q: {prompt}"


def test_a_broken_line_is_left_to_the_reader(tmp_path: Path) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(BALoraError, match="line 2"):
        sample_of(str(path))


def test_an_encoder_decoder_gets_seq2seq(tmp_path: Path) -> None:
    pair = Detected("pair", "prompt and response", {})
    (tmp_path / "config.json").write_text('{"is_encoder_decoder": true}')
    assert task_for(pair, str(tmp_path)) == "seq2seq"
    assert task_for(pair, "google/flan-t5-base") is None
    assert task_for(pair, "google/flan-t5-base", guess=True) == "seq2seq"
    assert task_for(pair, "meta-llama/Llama-3.2-1B") == "generation"


def test_a_built_in_chat_template_marks_what_is_learnt() -> None:
    tokenizer = tiny_tokenizer()
    set_chat_template(tokenizer, "zephyr")
    text, spans = render_marked(tokenizer, OPENAI, {})
    assert text == "<|user|>\nHi.</s>\n<|assistant|>\nHello.</s>\n"
    assert [text[start:end] for start, end in spans] == ["Hello.</s>"]
    prompt = render_chat(tokenizer, OPENAI[:1], add_generation_prompt=True)
    assert text.startswith(prompt)


def test_a_chat_template_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BALoraError, match=r"needs <\|im_start\|>.*zephyr"):
        set_chat_template(tiny_tokenizer(), "chatml")
    with pytest.raises(BALoraError, match="zephyr or chatml, or a file"):
        set_chat_template(tiny_tokenizer(), str(tmp_path / "absent.jinja"))
    own = tmp_path / "own.jinja"
    own.write_text("{{ messages[0]['content'] }}")
    tokenizer = tiny_tokenizer()
    set_chat_template(tokenizer, str(own))
    assert render_chat(tokenizer, OPENAI) == "Hi."
