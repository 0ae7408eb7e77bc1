"""Data of evaluations in the forms in which they are published, and flags in the messages of the command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from balora import BALoraError
from balora.evaluation import EvaluationOptions, evaluate
from evaluation_models import generator_at


@pytest.fixture
def math_tree(tmp_path: Path) -> Path:
    """The original MATH: a directory per split and subject, and a file per problem."""
    folder = tmp_path / "MATH"
    for split, subject, number, answer in (
        ("test", "algebra", 10, "10"), ("test", "algebra", 2, "2"), ("test", "geometry", 1, "1"), ("train", "algebra", 1, "0"),
    ):  # fmt: skip
        path = folder / split / subject / f"{number}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        row = {
            "problem": f"{subject} {number}?",
            "level": "Level 1",
            "type": subject,
            "solution": f"\\boxed{{{answer}}}",
        }
        path.write_text(json.dumps(row))
    (folder / "test" / "algebra" / "._2.json").write_bytes(b"\0\5\26\7")
    (folder / "README.md").write_text("MATH")
    return folder


def expected(folder: Path, out: Path, task: str = "math") -> list[str]:
    result = evaluate("reference", [task], output=out, options=EvaluationOptions(data={task: str(folder)}))
    return [sample["expected"] for sample in result.results[task]["samples"]]


@pytest.mark.parametrize(
    ("part", "answers"),
    [("", ["2", "10", "1"]), ("test", ["2", "10", "1"]), ("test/algebra", ["2", "10"]), ("train", ["0"])],
)
def test_a_tree_with_one_file_per_problem_is_read(
    math_tree: Path, tmp_path: Path, part: str, answers: list[str]
) -> None:
    assert expected(math_tree / part, tmp_path / "out") == answers


def test_subjects_of_a_tree_are_scored(math_tree: Path, tmp_path: Path) -> None:
    options = EvaluationOptions(data={"math": str(math_tree)})
    scores = evaluate("reference", ["math"], output=tmp_path / "out", options=options).results["math"]["scores"]
    assert scores["by_subject"] == {"algebra": 1.0, "geometry": 1.0}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "it holds a list, not a JSON object"),
        ("{", "cannot be read as one problem"),
        ("[" * 99_999, "cannot be read"),
    ],
)
def test_a_damaged_file_of_a_tree_is_named(math_tree: Path, tmp_path: Path, content: str, message: str) -> None:
    (math_tree / "test" / "algebra" / "3.json").write_text(content)
    with pytest.raises(BALoraError, match=rf"algebra/3\.json.*{message}"):
        expected(math_tree, tmp_path / "out")


def test_a_tree_without_the_split_is_refused(math_tree: Path, tmp_path: Path) -> None:
    shutil.rmtree(math_tree / "test")
    with pytest.raises(BALoraError, match="no directory test"):
        expected(math_tree, tmp_path / "out")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--limit", 0], "--limit must be at least 1, not 0"),
        (["--batch-size", -1], "--batch-size must be at least 1, not -1"),
        (["--max-new-tokens", 0], "--max-new-tokens must be at least 1"),
        (["--temperature", "nan"], "--temperature must be at least 0, not nan"),
        (["--temperature", "inf"], "--temperature must be at least 0, not inf"),
        (["--top-p", 1.5], "--top-p must be above 0 and at most 1, not 1.5"),
        (["--samples", 3], "--samples is 3, but greedy generation writes the same program each time. Give a --temperature"),
        (["--k", "5"], "pass@5 needs at least 5 samples per problem, but --samples is 1"),
        (["--k", "0"], "--k must be whole numbers of at least 1, not 0"),
        (["--code-timeout", 0], "--code-timeout must be above 0 seconds"),
        (["--code-timeout", "nan"], "--code-timeout must be above 0 seconds"),
        (["--few-shot", -1], "--few-shot must be at least 0, not -1"),
        (["--seed", -1], "--seed must be at least 0, not -1"),
        (["--workers", 0], "--workers must be at least 1"),
        (["--dtype", "bf16"], "--dtype must be auto, float32, bfloat16 or float16, not 'bf16'"),
        (["--engine", "vlm"], "--engine must be transformers or vllm, not 'vlm'. Did you mean 'vllm'?"),
        (["--prompt-template", "alpca"], "--prompt-template must be none, alpaca, chat, or a text that contains {prompt}"),
        (["--data", "gsm8k=absent.jsonl"], "absent.jsonl"),
        (["--data", "gsm8k=./absent"], "(--data)"),
        (["--judge-url", "http://h", "--judge-model", "m", "--judge-timeout", 0], "--judge-timeout must be above 0 seconds"),
    ],
)  # fmt: skip
def test_messages_of_the_command_name_flags(balora, tmp_path: Path, flags: list[object], message: str) -> None:
    model = generator_at(tmp_path / "m")
    outcome = balora("evaluate", model, "--tasks", "gsm8k", "--output", tmp_path / "o", "--device", "cpu", *flags)
    assert outcome.status == 2
    assert message in " ".join(outcome.err.split()), outcome.err
    assert "data.train" not in outcome.err
    assert "Traceback" not in outcome.err


def test_weights_in_pickle_form_name_the_flag(balora, tmp_path: Path) -> None:
    model = generator_at(tmp_path / "m")
    data = tmp_path / "test.jsonl"
    data.write_text(json.dumps({"question": "?", "answer": "#### 1"}) + "\n")
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    outcome = balora("evaluate", model, "--tasks", "gsm8k", "--data", f"gsm8k={data}", "--output", tmp_path / "o")
    assert outcome.status == 2
    assert "give --allow-pickle" in outcome.err


def test_options_of_python_keep_their_names() -> None:
    for option, message in (
        ({"batch_size": 0}, "^batch_size must be"),
        ({"samples": 2}, "^samples is 2.*Give a temperature"),
    ):
        with pytest.raises(BALoraError, match=message):
            EvaluationOptions(**option)
