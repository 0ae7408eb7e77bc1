"""`balora init`: a config that can be used as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from balora.config.run_config import load_run_config
from balora.config.scaffold import scalar
from balora.config.yaml_loader import parse_yaml
from command import Command


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, rows: list[dict]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def chat_rows(count: int) -> list[dict]:
    return [
        {"conversations": [{"from": "human", "value": f"{n} + 1?"}, {"from": "gpt", "value": f"It is {n + 1}."}]}
        for n in range(count)
    ]


def test_the_config_of_a_chat_can_be_validated(balora: Command, model_dir: Path) -> None:
    write("chat.jsonl", chat_rows(50))
    outcome = balora("init", "chat.jsonl", "--model", model_dir, "method.rank=4")
    assert outcome.status == 0, outcome.err
    assert "50 rows in chat.jsonl: ShareGPT conversations (data.messages: conversations)." in outcome.out
    assert "has no chat template, so data.chat_template is zephyr" in outcome.out
    assert "balora train run.yaml" in outcome.out
    text = Path("run.yaml").read_text()
    assert "# column of the conversations" in text
    config = load_run_config("run.yaml")
    assert (config.task, config.data.messages, config.data.eval, config.method.rank) == (
        "generation",
        "conversations",
        0.1,
        4,
    )
    validated = balora("validate", "run.yaml")
    assert validated.status == 0, validated.out + validated.err
    assert "This config can be run." in validated.out


def test_a_config_of_a_single_line_of_data_can_be_validated(balora: Command, model_dir: Path) -> None:
    write("pairs.jsonl", [{"question": f"{n}?", "answer": f"{n}."} for n in range(8)])
    Path("run.yaml").write_text(
        f"{{model: {model_dir}, data: {{train: pairs.jsonl}}, method: {{rank: 4}}, output: out}}"
    )
    outcome = balora("validate", "run.yaml")
    assert outcome.status == 0, outcome.out + outcome.err
    assert "Data: question and answer (data.prompt: question, data.response: answer)." in outcome.err
    assert "Task: generation." in outcome.err


def test_classes_are_counted_and_validation_files_found(balora: Command) -> None:
    rows = [{"text": f"t{n}", "label": "good" if n % 3 else "bad"} for n in range(30)]
    write("train.jsonl", rows)
    write("dev.jsonl", rows[:6])
    outcome = balora("init")
    assert outcome.status == 0, outcome.err
    assert "Classes: good 20, bad 10." in outcome.out
    config = load_run_config("run.yaml")
    assert (config.task, config.data.eval, config.data.text) == ("classification", "dev.jsonl", "text")


def test_an_existing_config_is_not_overwritten(balora: Command) -> None:
    write("chat.jsonl", chat_rows(3))
    Path("run.yaml").write_text("mine")
    outcome = balora("init", "chat.jsonl")
    assert outcome.status == 2
    assert "--force" in outcome.err
    assert Path("run.yaml").read_text() == "mine"
    assert balora("init", "chat.jsonl", "--force").status == 0


def test_unknown_columns_are_shown_and_can_be_named(balora: Command) -> None:
    write("odd.jsonl", [{"ask": "x", "reply": "y"}] * 4)
    outcome = balora("init", "odd.jsonl")
    assert outcome.status == 2
    assert "ask ('x'); reply ('y')" in outcome.err
    assert balora("init", "odd.jsonl", "data.prompt=ask", "data.response=reply").status == 0
    assert load_run_config("run.yaml").data.form == "pair"


def test_a_wrong_override_is_refused_and_nothing_written(balora: Command) -> None:
    write("chat.jsonl", chat_rows(3))
    outcome = balora("init", "chat.jsonl", "method.name=pisa")
    assert outcome.status == 2
    assert "Did you mean 'pissa'?" in outcome.err
    assert not Path("run.yaml").exists()


@pytest.mark.parametrize("value", ["2e-5", "no", "a: b", "train[:80]", "x\ny", "é", 1e-4, 3, True, ["a", "b"], "# no"])
def test_a_scalar_is_read_back(value: object) -> None:
    assert parse_yaml(f"key: {scalar(value)}")["key"] == value
