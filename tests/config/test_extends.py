"""Config files that extend other files: precedence and errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from balora.config.run_config import load_run_config
from balora.config.yaml_loader import read_config
from balora.errors import BALoraError

BASE = "{model: m, task: generation, data: {train: d.jsonl, text: story}, output: o, training: {learning_rate: 1e-3, bf16: true}}"


@pytest.fixture
def write(tmp_path: Path):
    def one(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return one


def error_of(path: Path) -> str:
    with pytest.raises(BALoraError) as error:
        read_config(path)
    return str(error.value)


def test_sections_are_merged_and_other_values_replaced(write) -> None:
    write("base.yaml", BASE.replace("text: story", "text: [a, b]"))
    path = write(
        "run.yaml", "extends: base.yaml\ndata: {text: [c], train: e.jsonl}\ntraining: {bf16: false}\nseed: 7\n"
    )
    assert read_config(path) == {
        "model": "m", "task": "generation", "data": {"train": "e.jsonl", "text": ["c"]}, "output": "o",
        "training": {"learning_rate": 1e-3, "bf16": False}, "seed": 7,
    }  # fmt: skip


def test_later_files_win_and_the_extending_file_wins_over_all(write) -> None:
    write("a.yaml", "{seed: 1, model: a, tokenizer: a}")
    write("b.yaml", "{seed: 2, model: b}")
    assert read_config(write("run.yaml", "{extends: [a.yaml, b.yaml], seed: 3}")) == {
        "seed": 3, "model": "b", "tokenizer": "a",
    }  # fmt: skip


def test_names_are_relative_to_the_file_that_contains_them(write, monkeypatch, tmp_path: Path) -> None:
    write("parts/deep.yaml", "{seed: 5, model: deep}")
    write("parts/base.yaml", "{extends: deep.yaml, model: base}")
    path = write("runs/run.yaml", "extends: ../parts/base.yaml")
    monkeypatch.chdir("/")
    assert read_config(path) == {"seed": 5, "model": "base"}


def test_an_empty_key_resets_to_the_default(write) -> None:
    write("base.yaml", BASE)
    config = load_run_config(write("run.yaml", "{extends: base.yaml, training: {learning_rate: }}"))
    assert config.training["bf16"] is True
    assert config.training.get("learning_rate") is None
    assert load_run_config(write("run2.yaml", "{extends: base.yaml, training: }")).training == {}


def test_the_resolved_config_does_not_extend_files(write, tmp_path: Path) -> None:
    write("base.yaml", BASE)
    config = load_run_config(write("run.yaml", "extends: base.yaml"), ["training.learning_rate=2e-5"])
    assert config.training["learning_rate"] == 2e-5
    assert "extends" not in config.to_dict()
    assert load_run_config(write("resolved.yaml", config.dump_yaml())) == config


def test_two_files_can_extend_the_same_file(write) -> None:
    write("base.yaml", BASE)
    write("a.yaml", "{extends: base.yaml, seed: 1}")
    write("b.yaml", "{extends: base.yaml, model: b}")
    merged = read_config(write("run.yaml", "extends: [a.yaml, b.yaml]"))
    assert (merged["seed"], merged["model"]) == (1, "b")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: bse.yaml", "run.yaml extends bse.yaml, but there is no file"),
        ("extends: bse.yaml", "Did you mean 'base.yaml'?"),
        ("extends: {base: yaml}", "must be the name of a file or a list of names, not {'base': 'yaml'}"),
        ("extends: [base.yaml, 3]", "must be the name of a file or a list of names, not ['base.yaml', 3]"),
        ("extends: run.yaml", "extend each other in a circle: run.yaml -> run.yaml"),
        ("extends: middle.yaml", "extend each other in a circle: run.yaml -> middle.yaml -> run.yaml"),
        ("extends: broken.yaml", "broken.yaml is not valid YAML"),
    ],
)
def test_an_impossible_extends_is_refused(write, text: str, message: str) -> None:
    write("base.yaml", BASE)
    write("middle.yaml", "extends: run.yaml")
    write("broken.yaml", "a: [")
    error = error_of(write("run.yaml", text))
    assert message in error
    assert "\n" not in error


def test_extends_cannot_be_an_override(write) -> None:
    with pytest.raises(BALoraError, match="extends cannot be an override"):
        load_run_config(write("run.yaml", BASE), ["extends=base.yaml"])
