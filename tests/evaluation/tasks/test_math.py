"""GSM8K and MATH: the extraction and the comparison of final answers."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from balora.errors import BALoraError
from balora.evaluation import EvaluationOptions, evaluate
from balora.evaluation.context import EvaluationContext
from balora.evaluation.scoring.equivalence import EquivalenceChecker
from balora.evaluation.scoring.math_answers import (
    contradicts,
    final_answer,
    final_number,
    parse_number,
    same_number,
    same_text,
)
from evaluation_models import generator_at

SHORT = {"device": "cpu", "max_new_tokens": 4, "batch_size": 3}


@pytest.fixture(scope="module")
def checker():
    with EquivalenceChecker(timeout=8.0) as running:
        yield running


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    path = tmp_path / "test.jsonl"
    rows = [{"question": f"What is {n} + {n}?", "answer": f"It is {2 * n}.\n#### {2 * n}"} for n in range(7)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so 5.\n#### 18\nThe answer is: 19.", "19"),
        ("The answer is: 3. No:\nThe answer is: 4", "4"),
        ("the answer is $\\boxed{\\frac{1}{2}}$.", "\\frac{1}{2}"),
        ("The answer is: \n", None),
        ("The answer is:\n#### 7", "7"),
        ("The answer is: \\[9\\]", "9"),
        ("The answer is: \\(10,\\!080\\)", "10,\\!080"),
        ("The answer is: \\(5\\text{ cm}\\).", "5\\text{ cm}"),
        ("The answer is:\n\\[\n9\n\\]", "9"),
        ("The answer is:\n\n\\frac{1}{2}\nSo it is.", "\\frac{1}{2}"),
        ("The answer is: **9**", "9"),
        ("**The answer is: 9**", "9"),
        ("**The answer is**: 9.", "9"),
        ("The answer is: 9. Thus we are done.", "9"),
        ("The answer is: Mr. Smith. Thus we are done.", "Mr. Smith"),
        ("The answer is: 9.5.", "9.5"),
        ("The final answer is 9", "9"),
        ("Final Answer: The final answer is $9$. I hope it is correct.", "$9$"),
        (
            "The answer is: \\begin{pmatrix} 1 \\\\[2pt] 2 \\end{pmatrix}",
            "\\begin{pmatrix} 1 \\\\[2pt] 2 \\end{pmatrix}",
        ),
        ("\\boxed{1}, rather \\boxed{\\{2, \\frac{3}{4}\\}}", "\\{2, \\frac{3}{4}\\}"),
        ("\\fbox{9}", "9"),
        ("$\\boxed 7$", "7"),
        ("\\boxed{broken", None),
        ("#### 1,000\n", "1,000"),
        ("the answer is 3? No: \\boxed{4}", "4"),
        ("\\boxed{4}, no, the answer is 5.", "5"),
        ("The answer is: 3\n#### 4", "4"),
        ("#### 3\nso \\boxed{4}", "4"),
        ("\\boxed{3}\n#### 4", "4"),
        ("\\boxed{odd}. Wait: the answer is even.", "even"),
        ("\\boxed{4}. I hope that the final answer is correct.", "4"),
        ("\\boxed{4}. The answer is in dollars.", "4"),
        ("\\boxed{4}\n#### Explanation\nSee above.", "4"),
        ("\\boxed{4}\n#### 3. Check\nIt is right.", "4"),
        ("The answer is correct.", "correct"),
        ("I would say 5", None),
        ("", None),
    ],
)
def test_the_final_answer(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("$1,234.50", "1234.50"), ("-3", "-3"), ("18 dollars", "18"), ("2/3 of it", "2/3"), ("\\frac{3}{4}", "3/4"),
        ("5%", "5"), ("ten", None), (None, None), (".5", ".5"), ("1{,}000", "1000"),
        ("-$5", "-5"), ("-\\$5", "-5"), ("$-5", "-5"), ("\u22125", "-5"), ("- 5", "-5"), ("10-12", "10"),
        ("3 + 15 = $18", "18"), ("3 * 6 = 18", "18"), ("x_1 = -$18", "-18"), ("9 x 2 =", None),
        ("18 (as 3 * 6 = n)", "18"), ("3\\frac{1}{2}", "7/2"), ("-3 \\frac12", "-7/2"), ("3 1/2", "7/2"),
        ("-\\frac{1}{2}", "-1/2"), ("12 / 4", "12/4"),
        ("3,4", "3"), ("5,10,15", "5"), ("5,100,15", "5"), ("1,234,567", "1234567"), ("10,\\!080", "10080"),
        ("1\\,000", "1000"), ("2e4", "2e4"), ("2e999999999", "2"), ("2eggs", "2"),
        ("1 000", "1000"), ("1\u202f000\u202f000", "1000000"), ("10~080", "10080"), ("3 20", "3"), ("1 0000", "1"),
        ("15 = 3 * 5", "15"), ("15=20-5", "15"), ("x = 15 = 3 \\times 5", "15"), ("$5 * 3 days = $15", "15"),
        ("x = 10-12", "10"), ("x = -5", "-5"),
        ("$2 million", "2000000"), ("2.5 thousand", "2500"), ("1,200 billion", "1200000000000"), ("1/2 million", "1/2"),
        ("11,\\! 111,\\! 100", "11111100"),
    ],
)  # fmt: skip
def test_numbers_are_parsed(answer: str | None, number: str | None) -> None:
    assert parse_number(answer) == number


@pytest.mark.parametrize(
    ("solution", "number"),
    [
        ("If the answer is wrong, tell me.\n#### 18", "18"),
        ("The answer is clear: \\boxed{18}, I think", "18"),
        ("So the answer is 9 x 2 =\n#### 18", "18"),
        ("\\boxed{17}\nThe answer is: eighteen", "17"),
        ("The answer is: 18\n#### 17", "17"),
        ("#### 18\nThe answer is in dollars.", "18"),
        ("The answer is: eighteen", None),
    ],
)
def test_the_final_number_is_taken_from_the_last_marker_with_a_number(solution: str, number: str | None) -> None:
    assert final_number(solution) == number


def test_numbers_are_compared_exactly() -> None:
    assert same_number("2e4", "20000")
    assert same_number("0.5", "1/2") and same_number("1000", "1000.0")
    assert not same_number("0.3333", "1/3")
    assert not same_number("1/0", "1/0")
    assert not same_text("", "")


@pytest.mark.parametrize(
    ("truth", "found", "equal"),
    [
        ("\\frac{1}{2}", "0.5", True),
        ("x+1", "1 + x", True),
        ("2\\sqrt{2}", "\\sqrt{8}", True),
        ("5", "x = 5", True),
        ("50\\%", "50", True),
        ("(3, \\frac{\\pi}{2})", "\\left(3, \\pi/2\\right)", True),
        ("\\text{Evelyn}", "Evelyn", True),
        ("11\\frac{1}{2}", "11 1/2", True),
        ("1000", "1e3", True),
        ("\\{1, 2\\}", "\\{2, 1\\}", True),
        ("(1,2)", "(2,1)", False),
        ("[1,2)", "(1,2)", False),
        ("\\text{A}", "\\text{B}", False),
        ("5", "6", False),
        ("5", "", False),
        ("5", "\\frac{", False),
        ("5", None, False),
        ("5", "5 " * 2000, False),
    ],
)
def test_equivalent_answers(checker: EquivalenceChecker, truth: str, found: str | None, equal: bool) -> None:
    assert checker.equal(truth, found) is equal


@pytest.mark.parametrize(
    ("truth", "found", "equal"),
    [
        ("2516_8", "2516_7", False),
        ("2516_8", "2516_{8}", True),
        ("1011_2", "1011_3", False),
        ("32", "3 2", False),
        ("8", "7 (or 8)", False),
        ("6", "6,6", False),
        ("\\{3,4\\}", "(4,3)", False),
        ("(3,4)", "\\{3,4\\}", False),
        ("0.0000012", "0.0000009", False),
        ("0.0000012", "1.2e-6", True),
        ("\\frac{1}{3}", "0.333333", True),
        ("5\\text{ cm}", "5\\text{ m}", False),
        ("5\\text{ cm}", "5", True),
        ("10080", "10,\\!080", True),
        ("1 \\text{ or } 2", "1,2", True),
        ("1/2^{99}", "1/2^{98}", False),
        ("\\frac{1}{2^{99}}", "2^{-99}", True),
        ("\\frac{1}{2004!}", "\\frac{1}{2006!}", False),
        ("\\frac{x}{2^{99}}", "\\frac{x}{2^{98}}", False),
        ("\\{1, \\frac{1}{2^{99}}\\}", "\\{1, \\frac{1}{2^{98}}\\}", False),
        ("\\sqrt{2}+\\sqrt{3}", "\\sqrt{5+2\\sqrt{6}}", True),
        ("0", "10^{-20}", False),
        ("[0,\\infty)", "[0,\\infty]", False),
        ("(-\\infty,0]", "[-\\infty,0]", False),
        ("[0,\\infty)", "\\left[0,+\\infty\\right)", True),
        ("\\pi", "3.14159265", False),
        ("3.14159265", "\\pi", False),
        ("(3, \\frac{\\pi}{2})", "(3, 1.5707963267948966)", False),
        ("\\frac{3\\pi}{2}", "1.5\\pi", True),
        ("0.5", "\\sin(\\pi/6)", True),
        ("(\\frac{1}{3}, 2)", "(0.333333333, 2)", True),
        ("4", "4\\sqrt(2)", False),
        ("\\sqrt{5+2\\sqrt{6}}", "\\sqrt(5+2\\sqrt(6))", True),
        ("11111111100", "11,\\! 111,\\! 111,\\! 100", True),
        ("11,\\! 111,\\! 111,\\! 100", "11,111,111,100", True),
        ("7.2\\%", "7.2", True),
        ("7.2\\%", "7.2 percent", True),
        ("7.2\\%", "0.072", True),
        ("0.072", "7.2\\text{ percent}", True),
        ("7.2\\%", "7.3\\%", False),
        ("7.2\\%", "0.072\\%", False),
        ("[2,5)", "2\\le x<5", True),
        ("2 \\leq x < 5", "[2,5)", True),
        ("[2,5)", "5>x\\ge 2", True),
        ("[2,5)", "2\\le x\\le 5", False),
        ("(3,\\infty)", "x>3", True),
        ("(3,\\infty)", "x\\ge 3", False),
    ],
)
def test_differences_that_math_verify_ignores(checker: EquivalenceChecker, truth: str, found: str, equal: bool) -> None:
    assert checker.is_correct(truth, found) is equal


def test_no_reference_answer_contradicts_itself(shared_dir: Path) -> None:
    rows = [json.loads(line) for line in (shared_dir / "data/math/math500.jsonl").read_text().splitlines()]
    assert not [row["answer"] for row in rows if contradicts(row["answer"], row["answer"])]


def test_an_answer_that_cannot_be_evaluated_in_time_is_wrong() -> None:
    with EquivalenceChecker(timeout=2.0) as checker:
        assert checker.equal("7", "14/2")
        started = time.monotonic()
        assert not checker.equal("7", "9^{9^{9^{9}}} - 9^{9^{9^{8}}}")
        assert time.monotonic() - started < 10
        assert checker.equal("7", "14/2")


def test_a_plain_model_gets_the_prompt_of_the_paper(tmp_path: Path, problems: Path) -> None:
    model = generator_at(tmp_path / "m")
    options = EvaluationOptions(data={"gsm8k": str(problems)}, **SHORT)
    result = evaluate(model, ["gsm8k"], output=tmp_path / "out", options=options).results["gsm8k"]
    assert result["samples"][2]["prompt"] == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nWhat is 2 + 2?\n\n### Response: Let's think step by step."
    )
    assert [sample["expected"] for sample in result["samples"]] == [str(2 * n) for n in range(7)]
    assert result["scores"]["rows"] == 7
    assert result["identity"]["generation"]["temperature"] == 0


def test_each_sample_has_its_extracted_answer(tmp_path: Path, problems: Path) -> None:
    options = EvaluationOptions(data={"gsm8k": str(problems)})
    result = evaluate("reference", ["gsm8k"], output=tmp_path / "out", options=options).results["gsm8k"]
    assert result["scores"]["accuracy"] == 1.0
    assert result["samples"][3] == {
        "id": "3",
        "prompt": result["samples"][3]["prompt"],
        "output": "It is 6.\n#### 6",
        "expected": "6",
        "extracted": "6",
        "correct": True,
    }


def test_accuracy_counts_wrong_and_missing_answers(tmp_path: Path, problems: Path, monkeypatch) -> None:
    replies = ["#### 0", "The answer is: 2", "The answer is: 5", "no idea", "#### 8.0", "\\boxed{10}", "12"]
    monkeypatch.setattr(
        EvaluationContext,
        "_generate",
        lambda self, requests, *_: ((r, {"output": replies[int(r.sample)]}) for r in requests),
    )
    options = EvaluationOptions(data={"gsm8k": str(problems)}, **SHORT)
    scores = evaluate(generator_at(tmp_path / "m"), ["gsm8k"], output=tmp_path / "out", options=options).results[
        "gsm8k"
    ]["scores"]
    assert scores["accuracy"] == pytest.approx(4 / 7)
    assert scores["answered"] == pytest.approx(5 / 7)


def rows_at(path: Path, *rows: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("task", "rows", "expected"),
    [
        (
            "gsm8k",
            [{"question": "?", "answer": answer} for answer in ("18", "$1,000.", "18 dollars", 0, "So 5.\n#### 5")],
            ["18", "1000", "18", "0", "5"],
        ),
        (
            "math",
            [{"problem": "?", "solution": answer} for answer in ("\\frac{1}{2}", "$x$", "Evelyn", 0, "Is \\boxed{5}")],
            ["\\frac{1}{2}", "$x$", "Evelyn", "0", "5"],
        ),
        ("math", [{"problem": "?", "answer": 0}, {"problem": "?", "answer": "[2,5)"}], ["0", "[2,5)"]),
        ("math", [{"problem": "?", "solution": "So we get what was asked for.", "answer": 0}], ["0"]),
    ],
)
def test_a_true_answer_needs_no_marker(tmp_path: Path, task: str, rows: list, expected: list[str]) -> None:
    options = EvaluationOptions(data={task: str(rows_at(tmp_path / "test.jsonl", *rows))})
    result = evaluate("reference", [task], output=tmp_path / "out", options=options).results[task]
    assert [sample["expected"] for sample in result["samples"]] == expected
    assert result["scores"]["accuracy"] == 1.0


@pytest.mark.parametrize("answer", ["He has 3 + 4 = 7 apples, which is what was asked.", "eighteen", "", None, "10-12"])
def test_a_row_without_a_true_answer_is_refused(tmp_path: Path, answer: str | None) -> None:
    path = rows_at(tmp_path / "test.jsonl", {"question": "?", "answer": "7"}, {"question": "?", "answer": answer})
    options = EvaluationOptions(data={"gsm8k": str(path)})
    with pytest.raises(BALoraError, match=r"Row 2 of .*test\.jsonl: the column 'answer' has no final answer"):
        evaluate("reference", ["gsm8k"], output=tmp_path / "out", options=options)


def test_a_worked_solution_of_math_without_an_answer_is_refused(tmp_path: Path) -> None:
    path = rows_at(
        tmp_path / "test.jsonl", {"problem": "?", "solution": "We add both sides, and it follows that $x=5$."}
    )
    options = EvaluationOptions(data={"math": str(path)})
    with pytest.raises(BALoraError, match=r"Row 1 of .*test\.jsonl: the column 'solution'"):
        evaluate("reference", ["math"], output=tmp_path / "out", options=options)


def test_grades_of_an_earlier_version_are_made_again(tmp_path: Path, problems: Path) -> None:
    options = EvaluationOptions(data={"gsm8k": str(problems)})
    evaluate("reference", ["gsm8k"], output=tmp_path / "out", options=options)
    journal = tmp_path / "out/gsm8k.samples.jsonl"
    with journal.open("a") as file:
        file.write(json.dumps({"id": "3", "expected": "", "extracted": None, "correct": False}) + "\n")
    said: list[str] = []
    result = evaluate("reference", ["gsm8k"], output=tmp_path / "out", options=options, say=said.append).results[
        "gsm8k"
    ]
    assert result["scores"]["accuracy"] == 1.0
    assert "  grades that differ from those of an earlier version: 1" in said
    content = journal.read_text()
    evaluate("reference", ["gsm8k"], output=tmp_path / "out", options=options)
    assert journal.read_text() == content


def test_reference_answers_of_gsm8k_are_correct(shared_dir: Path, tmp_path: Path) -> None:
    options = EvaluationOptions(data={"gsm8k": str(shared_dir / "data/gsm8k/test.jsonl")})
    result = evaluate("reference", ["gsm8k"], output=tmp_path, options=options).results["gsm8k"]
    assert result["scores"]["accuracy"] == 1.0 and result["scores"]["rows"] == 1319


def test_reference_solutions_of_math_are_correct(shared_dir: Path, tmp_path: Path) -> None:
    options = EvaluationOptions(data={"math500": str(shared_dir / "data/math/math500.jsonl")})
    result = evaluate("reference", ["math500"], output=tmp_path, options=options).results["math500"]
    misses = [(s["expected"], s["extracted"]) for s in result["samples"] if not s["correct"]]
    assert len(misses) <= 5, misses
    assert len(result["scores"]["by_subject"]) == 7


def test_math_verify_distinguishes_the_reference_answers(shared_dir: Path, checker: EquivalenceChecker) -> None:
    """math-verify alone, without the comparison as text, accepts a reference answer and rejects that of another problem."""
    rows = [json.loads(line) for line in (shared_dir / "data/math/math500.jsonl").read_text().splitlines()][:200]
    answers = [row["answer"] for row in rows]
    assert sum(checker._ask_worker(answer, answer) for answer in answers) >= 198
    others = answers[3:] + answers[:3]
    different = [(a, b) for a, b in zip(answers, others, strict=True) if not same_text(a, b)]
    assert not [pair for pair in different if checker.equal(*pair)]
