"""`data.streaming`: the same rows as without it, an order that depends on the seed alone, and a resume that goes on in it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset
from safetensors.torch import load_file

from balora.config.run_config import RunConfig
from balora.config.sections import DataConfig
from balora.data.streaming import open_stream, shuffled
from balora.errors import BALoraError
from command import Command


def rows(count: int) -> list[dict]:
    return [{"q": f"row {number}?", "a": f"answer {number}"} for number in range(count)]


def section(*names: str, **changes) -> DataConfig:
    return DataConfig(train=names, prompt="q", response="a", streaming=True, **changes)


def write_lines(path: Path, given: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    return str(path)


def test_the_rows_of_all_files_are_read_in_order(tmp_path: Path) -> None:
    first = write_lines(tmp_path / "a-1.jsonl", rows(1500))
    Dataset.from_list(rows(1700)[1500:]).to_parquet(tmp_path / "a-2.parquet")
    stream = open_stream(section(first, str(tmp_path / "a-2.parquet")), 0)
    chunks = list(stream.chunks())
    assert [len(chunk) for chunk in chunks] == [1000, 700]
    assert [row["prompt"] for chunk in chunks for row in chunk] == [row["q"] for row in rows(1700)]
    assert [path.name for path in open_stream(section(str(tmp_path / "a-*")), 0).files] == ["a-1.jsonl", "a-2.parquet"]


def test_a_dataset_of_the_hub_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def load(name: str, configuration: str | None, **given):
        asked.update(given, name=name, configuration=configuration)
        return Dataset.from_list(rows(3)).to_iterable_dataset()

    monkeypatch.setattr("datasets.load_dataset", load)
    stream = open_stream(section("org/data", name="main", split="test"), 0)
    assert [row["response"] for row in stream.first()] == ["answer 0", "answer 1", "answer 2"]
    assert asked == {"name": "org/data", "configuration": "main", "split": "test", "streaming": True}
    assert stream.digest() == open_stream(section("org/data"), 0).digest()
    with pytest.raises(BALoraError, match="reads one dataset of the hub"):
        open_stream(section("org/data", "org/more"), 0)


def test_the_buffer_shuffles_without_losing_a_row() -> None:
    order = list(shuffled(iter(range(500)), 50, 1))
    assert sorted(order) == list(range(500))
    assert order != list(range(500))
    assert order == list(shuffled(iter(range(500)), 50, 1))
    assert order != list(shuffled(iter(range(500)), 50, 2))
    assert list(shuffled(iter(range(9)), 1, 0)) == list(range(9))


def test_a_row_that_cannot_be_used_is_named_with_its_line(tmp_path: Path) -> None:
    name = write_lines(tmp_path / "a.jsonl", [*rows(1200), {"q": "no answer"}])
    chunks = open_stream(section(name), 0).chunks()
    next(chunks)
    with pytest.raises(BALoraError, match="line 1201"):
        next(chunks)
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(BALoraError, match="cannot be read row by row"):
        open_stream(section(str(tmp_path / "a.json")), 0)
    with pytest.raises(BALoraError, match="has no columns 'q'"):
        open_stream(section(write_lines(tmp_path / "b.jsonl", [{"x": "y"}])), 0).first()


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(
    balora: Command, config: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = yaml.safe_load(config.read_text())
    values["data"] |= {"streaming": True, "shuffle_buffer": 8}
    values["data"].pop("eval", None)
    values["training"] |= {"max_steps": 10, "per_device_train_batch_size": 3, "save_strategy": "steps", "save_steps": 9}
    values["training"].pop("eval_strategy", None)
    values["regularization"] = "off"
    values["output"] = str(tmp_path / "run")
    config.write_text(yaml.safe_dump(values))
    outcome = balora("train", config)
    assert outcome.status == 0, outcome.err
    assert "a stream of examples" in outcome.out
    assert "are read again" in caplog.text  # 24 rows, and 10 steps of 3 read 30
    run = tmp_path / "run"
    expected = load_file(run / "adapter" / "adapter_model.safetensors")
    shutil.rmtree(run / "adapter")
    shutil.rmtree(run / "checkpoint-10", ignore_errors=True)
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "status": "interrupted"}))
    outcome = balora("train", config)
    assert outcome.status == 0, outcome.err
    assert "Resuming from" in outcome.out
    found = load_file(run / "adapter" / "adapter_model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    outcome = balora("inspect", config)
    assert "data.streaming: only the first 24 rows were looked at." in outcome.out


def test_what_needs_all_rows_is_refused_by_name() -> None:
    data = {"train": "d.jsonl", "text": "t", "streaming": True}
    base = {"model": "m", "output": "o", "task": "generation", "data": data, "training": {"max_steps": 3}}
    assert RunConfig.from_dict(base).data.shuffle_buffer == 10_000
    further = {
        "subsample": 5, "duplicate": 0.5, "eval": 0.1, "split": "train[:5]", "packing": True, "also": [{"train": "e.jsonl"}],
    }  # fmt: skip
    training = {"dataloader_num_workers": 2, "save_strategy": "epoch"}
    changes = {"teacher_cache": "folder", "method": {"name": "corda"}}
    with pytest.raises(BALoraError) as error:
        RunConfig.from_dict({**base, **changes, "data": {**data, **further}, "training": training})
    message = str(error.value)
    for name in (
        *(f"data.{key}" for key in further),
        *(f"training.{key}" for key in training),
        "teacher_cache",
        "Method corda",
    ):
        assert name in message, name
    assert "needs training.max_steps" in message
    with pytest.raises(BALoraError, match="classes and scores need all rows"):
        RunConfig.from_dict({**base, "task": "classification", "data": {**data, "label": "l"}})
    with pytest.raises(BALoraError, match=r"shuffle_buffer is for data\.streaming"):
        RunConfig.from_dict({**base, "data": {"train": "d.jsonl", "text": "t", "shuffle_buffer": 5}})
