"""Large data: rows stay in their file or in Arrow, tokens are cached by what they depend on, several processes give the same."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import datasets
import pytest

from balora.config.run_config import DataConfig
from balora.data import data_cache, examples, parallel_encoding, tokenize
from balora.data.conversations import turn_frames
from balora.data.examples import load_examples
from balora.data.files.lazy_rows import JsonLines
from balora.data.files.readers import read_table
from balora.data.tokenize import tokenize_examples
from balora.errors import BALoraError
from tiny import tiny_tokenizer

PLAIN = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}^{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """Cache the smallest data, in a directory of the test."""
    monkeypatch.setattr(data_cache, "CACHED_FROM", 0)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def run(data: DataConfig, tokenizer, task: str = "generation"):
    found = load_examples(data, task)
    return found, tokenize_examples(found, tokenizer, data, task)


def pairs(jsonl, count: int = 30, **keys) -> DataConfig:
    rows = [{"q": f"ask {i}", "a": f"say {i}" + " <eos>" * (i == 3)} for i in range(count)]
    return DataConfig(train=jsonl(*rows), prompt="q", response="a", **keys)


def chats(count: int = 40) -> list[dict]:
    rows = []
    for i in range(count):
        turns = [("user", f"ask {i}"), ("assistant", f"say {i}")] * (1 + i % 3)
        system = [("system", "be kind")] if i % 5 == 0 else []
        rows.append({"m": [{"role": role, "content": content} for role, content in (*system, *turns)]})
    return rows


def test_a_second_run_reads_the_cache_and_warns_again(jsonl, tokenizer, cached, monkeypatch, caplog):
    data = pairs(jsonl, eval="train[:4]", max_length=14)
    with caplog.at_level(logging.WARNING):
        first = run(data, tokenizer)
    said = [record.getMessage() for record in caplog.records]
    caplog.clear()
    monkeypatch.setattr(examples, "_load", None)
    monkeypatch.setattr(tokenize, "encode_rows", None)
    with caplog.at_level(logging.WARNING):
        second = run(data, tokenizer)
    assert [record.getMessage() for record in caplog.records] == said
    assert len(said) >= 3  # the overlap, rows that are cut, the text of a special token
    assert second[0].digest == first[0].digest
    assert second[0].train.to_list() == first[0].train.to_list()
    for part in ("train", "eval"):
        assert getattr(second[1], part).to_list() == getattr(first[1], part).to_list()
    assert second[1].train.cache_files[0]["filename"].startswith(str(cached))


def test_what_the_rows_depend_on_makes_them_anew(jsonl, tokenizer, cached):
    data = pairs(jsonl)
    before = run(data, tokenizer)[1].train.to_list()
    other = data.model_copy(update={"separator": " = "})
    assert run(other, tokenizer)[1].train.to_list() != before
    tokenizer.add_tokens(["ask"])
    changed = run(data, tokenizer)[1].train.to_list()
    assert len(changed[0]["input_ids"]) < len(before[0]["input_ids"])
    # The content decides, not the time or the size of the file.
    status = os.stat(data.train)
    Path(data.train).write_text(Path(data.train).read_text().replace("say", "sly"))
    os.utime(data.train, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert run(data, tokenizer)[0].train[0]["response"] == "sly 0"


def test_the_chat_template_belongs_to_what_tokens_depend_on(jsonl, tokenizer, cached):
    data = DataConfig(train=jsonl(*chats(4)), messages="m")
    tokenizer.chat_template = PLAIN
    before = run(data, tokenizer)[1].train.to_list()
    tokenizer.chat_template = PLAIN.replace("^", "^^")
    assert run(data, tokenizer)[1].train.to_list() != before


def test_a_failed_run_leaves_no_cache(jsonl, tokenizer, cached):
    data = DataConfig(train=jsonl({"q": "a", "a": "b"}, {"q": "a", "a": ""}), prompt="q", response="a")
    for _ in range(2):
        with pytest.raises(BALoraError, match="line 2"):
            run(data, tokenizer)
    assert not [path for path in cached.rglob("*") if path.is_dir() and path.parent.name == "balora"]


def test_several_processes_give_the_same_rows_and_notes(jsonl, tokenizer, cached, monkeypatch):
    monkeypatch.setattr(parallel_encoding, "_LEAST", 1)
    tokenizer.chat_template = PLAIN
    rows = chats(23)
    rows[20]["m"][0]["content"] += " <eos>"
    one = DataConfig(train=jsonl(*rows), messages="m", max_length=40)
    expected = run(one, tokenizer)[1]
    several = one.model_copy(update={"num_proc": 3})
    monkeypatch.setattr(data_cache.datasets.config, "HF_DATASETS_CACHE", str(cached / "other"))
    found = run(several, tokenizer)[1]
    assert len(found.train.cache_files) == 3
    assert found.train.to_list() == expected.train.to_list()
    assert found.notes == expected.notes != ()


def test_perturbed_and_cached_rows_are_those_in_memory(jsonl, tokenizer, monkeypatch, tmp_path):
    data = pairs(jsonl, label_noise=0.3, duplicate=0.2, subsample=20, eval=0.2)
    in_memory = load_examples(data, "generation")
    monkeypatch.setattr(data_cache, "CACHED_FROM", 0)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    from_cache = load_examples(data, "generation")
    assert from_cache.cache
    assert from_cache.train.to_list() == in_memory.train.to_list()
    assert from_cache.perturbations == in_memory.perturbations
    assert from_cache.digest == in_memory.digest


def test_the_quick_way_through_conversations_gives_what_the_careful_way_gives(jsonl, monkeypatch):
    data = DataConfig(train=jsonl(*chats(150)), messages="m")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = PLAIN
    careful_renderings = []
    monkeypatch.setattr(turn_frames.TurnFrames, "is_known", lambda self, roles: False)
    careful = run(data, tokenizer)[1]
    monkeypatch.undo()
    from balora.data.conversations.chat import ChatEncoder

    own = ChatEncoder._careful
    monkeypatch.setattr(ChatEncoder, "_careful", lambda self, *a: careful_renderings.append(1) or own(self, *a))
    quick = run(data, tokenizer)[1]
    assert quick.train.to_list() == careful.train.to_list()
    assert quick.notes == careful.notes
    assert len(careful_renderings) < 70  # three of each of six kinds of conversation, those before them, and no others


def test_a_template_that_looks_at_the_last_message_is_read_the_careful_way(jsonl, monkeypatch):
    # An answer with an exclamation mark gets a remark, but only while it is the last message.
    template = PLAIN.replace("^{% endfor %}", "{% if loop.last and '!' in m.content %}#{% endif %}^{% endfor %}")
    rows = [
        {"m": [{"role": r, "content": f"{c}{'!' * (i == 7)}"} for r, c in [("user", "a"), ("assistant", f"b{i}")] * 2]}
        for i in range(10)
    ]
    data = DataConfig(train=jsonl(*rows), messages="m")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    monkeypatch.setattr(turn_frames, "_EVERY", 8)
    found = run(data, tokenizer)[1]
    assert len(found.train) == 11  # the one conversation becomes two examples
    assert "differently once others follow" in " ".join(found.notes)


def test_rows_of_json_lines_stay_in_the_file(jsonl):
    path = jsonl({"a": "é"}, "", {"a": 2, "b": [1]}, {"b": None})
    table = read_table(Path(path))
    assert isinstance(table.rows, JsonLines)
    assert table.columns == ("a", "b")
    assert table.rows == [{"a": "é"}, {"a": 2, "b": [1]}, {"b": None}]
    assert table.take([2, 0]).rows == [{"b": None}, {"a": "é"}]
    assert table.take([2, 0]).locations == [f"{path} line 4", f"{path} line 1"]
    with open(path, "a") as file:
        file.write(json.dumps({"a": 3}) + "\n")
    with pytest.raises(BALoraError, match="was changed while it was read"):
        list(table.rows)
