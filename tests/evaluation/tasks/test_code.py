"""HumanEval and MBPP: programs from answers, pass@k, and the reference solutions."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path

import pytest

from balora import BALoraError
from balora.evaluation import EvaluationOptions, evaluate
from balora.evaluation.context import EvaluationContext
from balora.evaluation.sandbox import sandbox as sandbox_module
from balora.evaluation.sandbox.sandbox import Outcome, Sandbox
from balora.evaluation.scoring.pass_at_k import mean_pass_at_k, pass_at_k
from balora.evaluation.scoring.programs import add_tests, called_names, complete_function, extract_code
from evaluation_models import generator_at


@pytest.fixture
def sandbox() -> None:
    try:
        Sandbox()
    except BALoraError as error:
        pytest.skip(f"no sandbox here: {error}")


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    path = tmp_path / "problems.jsonl"
    rows = [
        {
            "task_id": f"Test/{n}",
            "prompt": f'import math\n\ndef helper(x):\n    return x\n\n\ndef add{n}(x):\n    """Add {n}."""\n',
            "entry_point": f"add{n}",
            "canonical_solution": f"    return math.floor(helper(x)) + {n}\n",
            "test": f"def check(candidate):\n    assert candidate(1) == {n + 1}\n",
        }
        for n in range(4)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("n", [1, 3, 6])
def test_pass_at_k_is_the_fraction_of_all_subsets(n: int) -> None:
    for correct, k in itertools.product(range(n + 1), range(1, n + 1)):
        programs = [True] * correct + [False] * (n - correct)
        choices = list(itertools.combinations(programs, k))
        assert pass_at_k(n, correct, k) == pytest.approx(sum(map(any, choices)) / len(choices))
    assert mean_pass_at_k([[True] * n, [False] * n], 1) == 0.5
    with pytest.raises(ValueError, match="pass@9"):
        pass_at_k(n, 1, 9)


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        ("Here:\n```python\ndef f():\n    pass\n```\nDone.", "def f():\n    pass\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("```python\nx = 1", "x = 1"),
        ("```python\nhelper = 1\n```\nand\n```python\ndef f():\n    pass\n```", "def f():\n    pass\n"),
        ("```bash\npip install x\n```\n```python\ndef f():\n    pass\n```", "def f():\n    pass\n"),
        ("```\n>>> f(2)\n2\n```\n```python\ndef f():\n    pass\n```", "def f():\n    pass\n"),
        ("```bash\npip install x\n```\n```\n    return 1\n```", "    return 1\n"),
        ("```python\n    import os\n    return 1\n```", "    import os\n    return 1\n"),
        ("1. So:\n   ```python\n   def f():\n       pass\n   ```", "def f():\n    pass\n"),
        (
            "```python\ndef g():\n    return 1\n```\nand\n```python\ndef f():\n    return g()\n```",
            "def g():\n    return 1\n\ndef f():\n    return g()\n",
        ),
        ("I think\nimport os\ndef f(): pass", "import os\ndef f(): pass"),
        ("    return 1\n", "    return 1\n"),
        ("no code", "no code"),
    ],
)
def test_code_is_extracted_from_a_reply(reply: str, code: str) -> None:
    assert extract_code(reply, "f") == code
    if "helper" not in reply:
        assert extract_code(reply) == code


def test_a_complete_function_keeps_the_helpers_of_the_prompt() -> None:
    prompt = "import math\n\ndef helper(x):\n    return x\n\n\ndef f(x):\n"
    whole = complete_function(prompt, "def f(x):\n    return helper(x)\n", "f")
    assert whole == "import math\n\ndef helper(x):\n    return x\n\n\ndef f(x):\n    return helper(x)\n"
    assert complete_function(prompt, "    return 1\n", "f") == prompt + "    return 1\n"


def answers(monkeypatch: pytest.MonkeyPatch, replies) -> None:
    monkeypatch.setattr(EvaluationContext, "tokenizer", None)
    monkeypatch.setattr(
        EvaluationContext,
        "_generate",
        lambda self, requests, *_: ((r, {"output": replies(r.sample)}) for r in requests),
    )


def test_pass_at_k_of_generated_programs(sandbox, tmp_path: Path, problems: Path, monkeypatch) -> None:
    right = {"0/0", "0/1", "1/2", "3/0", "3/1", "3/2"}
    answers(
        monkeypatch, lambda s: f"\n    return math.floor(helper(x)) + {s[0]}\n" if s in right else "\n    return None\n"
    )
    options = EvaluationOptions(
        data={"humaneval": str(problems)}, samples=3, ks=(1, 2, 3), temperature=0.8, code_timeout=10
    )
    result = evaluate(generator_at(tmp_path / "m"), ["humaneval"], output=tmp_path / "out", options=options)
    scores = result.results["humaneval"]["scores"]
    assert scores["pass@1"] == pytest.approx((2 / 3 + 1 / 3 + 0 + 1) / 4)
    assert scores["pass@2"] == pytest.approx((1 + 2 / 3 + 0 + 1) / 4)
    assert scores["pass@3"] == pytest.approx(3 / 4)
    samples = {s["id"]: s for s in result.results["humaneval"]["samples"]}
    assert {s for s, record in samples.items() if record["passed"]} == right
    assert samples["2/0"]["result"].startswith("AssertionError")
    assert result.results["humaneval"]["sandbox"]["kind"] == "bubblewrap"


def test_a_reply_to_an_instruction_is_searched_for_code(sandbox, tmp_path: Path, problems: Path, monkeypatch) -> None:
    answers(
        monkeypatch,
        lambda s: f"Sure.\n```python\ndef add{s[0]}(x):\n    return helper(x) + {s[0]}\n```\nHope it helps!",
    )
    options = EvaluationOptions(data={"humaneval": str(problems)}, prompt_template="alpaca")
    result = evaluate(generator_at(tmp_path / "m"), ["humaneval"], output=tmp_path / "out", options=options)
    assert result.main_scores == {"humaneval": 1.0}
    assert "### Instruction:\nComplete the following" in result.results["humaneval"]["samples"][0]["prompt"]


def test_no_program_is_run_twice(sandbox, tmp_path: Path, problems: Path, monkeypatch) -> None:
    options = EvaluationOptions(data={"humaneval": str(problems)}, limit=2)
    evaluate("reference", ["humaneval"], output=tmp_path / "out", options=options)
    ran = []
    run = Sandbox.run
    monkeypatch.setattr(Sandbox, "run", lambda self, *job: ran.append(job) or run(self, *job))
    options = EvaluationOptions(data={"humaneval": str(problems)})
    result = evaluate("reference", ["humaneval"], output=tmp_path / "out", options=options).results["humaneval"]
    assert len(ran) == 2 and result["scores"]["pass@1"] == 1.0 and result["scores"]["problems"] == 4


def test_a_verdict_of_another_sandbox_or_time_limit_is_made_again(tmp_path: Path, problems: Path, monkeypatch) -> None:
    ran = []
    monkeypatch.setattr(Sandbox, "_find_bubblewrap", lambda self: "bwrap")
    monkeypatch.setattr(Sandbox, "run", lambda self, *job: ran.append(self.unsafe) or Outcome(False, "timed out", 1.0))

    def run(**how) -> list[bool]:
        ran.clear()
        options = EvaluationOptions(data={"humaneval": str(problems)}, limit=2, **how)
        evaluate("reference", ["humaneval"], output=tmp_path / "out", options=options)
        return list(ran)

    assert run(code_timeout=1.0) == [False, False] and run(code_timeout=1.0) == []
    assert run(code_timeout=2.0) == [False, False] and run(code_timeout=2.0) == []
    assert run(code_timeout=2.0, unsafe_code=True) == [True, True]


def test_without_a_sandbox_nothing_is_generated(balora, tmp_path: Path, problems: Path, monkeypatch) -> None:
    monkeypatch.setattr(sandbox_module.shutil, "which", lambda name: None)
    model = generator_at(tmp_path / "m")
    command = ["evaluate", model, "--tasks", "humaneval", "--data", f"humaneval={problems}", "--output", tmp_path / "o"]
    refused = balora(*command)
    assert (
        refused.status == 2
        and "needs bubblewrap, which is not installed" in refused.err
        and "--unsafe-code" in refused.err
    )
    assert not (tmp_path / "o" / "humaneval.samples.jsonl").exists()
    allowed = balora(*command, "--unsafe-code", "--max-new-tokens", 5, "--device", "cpu")
    assert allowed.status == 0 and "WITHOUT a sandbox" in allowed.out
    assert json.loads((tmp_path / "o" / "humaneval.json").read_text())["sandbox"]["kind"] == "none"


def test_mbpp_selects_its_test_split_from_the_complete_file(shared_dir: Path, sandbox, tmp_path: Path) -> None:
    options = EvaluationOptions(data={"mbpp": str(shared_dir / "data/mbpp/mbpp.jsonl")}, limit=20)
    result = evaluate("reference", ["mbpp"], output=tmp_path, options=options).results["mbpp"]
    assert [sample["problem"] for sample in result["samples"]] == list(range(11, 31))
    assert result["scores"]["pass@1"] == 1.0
    assert result["samples"][0]["prompt"].startswith('"""\nWrite a python function to remove first and last occurrence')


def test_reference_solutions_of_humaneval_pass(shared_dir: Path, sandbox, tmp_path: Path) -> None:
    options = EvaluationOptions(data={"humaneval": str(shared_dir / "data/humaneval/HumanEval.jsonl")}, limit=40)
    result = evaluate("reference", ["humaneval"], output=tmp_path, options=options).results["humaneval"]
    assert [s["problem"] for s in result["samples"] if not s["passed"]] == []


def test_hostile_programs_fail_and_do_not_stop_the_evaluation(sandbox, tmp_path: Path) -> None:
    programs = {
        11: "def f(x): return x * x",
        12: "class passed(Exception): pass\nraise passed",
        13: "raise ValueError('\\ud800')",
        14: "def f(x): return 0",
        15: "text = '\ud800'",
        16: "raise type('timed out', (Exception,), {})",
        17: "class Any:\n    def __eq__(self, other): return True\ndef f(x): return Any()",
    }
    tests = {"text": "write f", "test_list": ["assert f(2) == 4"], "test_setup_code": ""}
    data = tmp_path / "mbpp.jsonl"
    data.write_text("".join(json.dumps({"task_id": n, "code": code, **tests}) + "\n" for n, code in programs.items()))
    options = EvaluationOptions(data={"mbpp": str(data)}, code_timeout=10)
    for _ in range(2):  # the second call reads the journal of the first
        result = evaluate("reference", ["mbpp"], output=tmp_path / "out", options=options).results["mbpp"]
        assert [sample["problem"] for sample in result["samples"] if sample["passed"]] == [11]
        assert result["scores"]["timed_out"] == 0
    saved = json.loads((tmp_path / "out" / "mbpp.json").read_text())
    assert saved["samples"][4]["output"] == programs[15], "a lone surrogate is kept as a JSON escape"


@pytest.mark.slow
@pytest.mark.parametrize("task", ["humaneval", "mbpp"])
def test_every_reference_solution_passes(shared_dir: Path, sandbox, tmp_path: Path, task: str) -> None:
    file = {"humaneval": "humaneval/HumanEval.jsonl", "mbpp": "mbpp/mbpp.jsonl"}[task]
    options = EvaluationOptions(data={task: str(shared_dir / "data" / file)}, code_timeout=60)
    result = evaluate("reference", [task], output=tmp_path, options=options).results[task]
    assert [s["problem"] for s in result["samples"] if not s["passed"]] == []
    assert result["scores"]["problems"] == {"humaneval": 164, "mbpp": 500}[task]


def test_wrong_programs_fail_their_tests(shared_dir: Path, sandbox, tmp_path: Path, monkeypatch) -> None:
    answers(monkeypatch, lambda s: "\n    return None\n")
    options = EvaluationOptions(data={"humaneval": str(shared_dir / "data/humaneval/HumanEval.jsonl")}, limit=15)
    model = generator_at(tmp_path / "m")
    scores = evaluate(model, ["humaneval"], output=tmp_path / "o", options=options).results["humaneval"]["scores"]
    assert scores["pass@1"] == 0.0


HUMANEVAL_ROW = {
    "task_id": "X/0",
    "prompt": '\n\ndef double(x):\n    """Return twice x."""\n',
    "entry_point": "double",
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n",
}
MBPP_ROW = {
    "task_id": 12,
    "text": "Double x.",
    "code": "def f(x):\n    return 2 * x",
    "test_list": ["assert f(2) == 4", "assert f(3) == 6"],
}


@pytest.mark.parametrize(
    ("task", "row", "code_prompt", "prompt"),
    [
        ("humaneval", HUMANEVAL_ROW, None, 'def double(x):\n    """Return twice x."""'),
        ("humaneval", HUMANEVAL_ROW, "harness", 'def double(x):\n    """Return twice x."""'),
        ("humaneval", HUMANEVAL_ROW, "dataset", HUMANEVAL_ROW["prompt"]),
        ("mbpp", MBPP_ROW, None, '"""\nDouble x.\nassert f(2) == 4\n"""\n'),
        ("mbpp", MBPP_ROW, "dataset", '"""\nDouble x.\nassert f(2) == 4\nassert f(3) == 6\n"""\n'),
    ],
)
def test_the_prompt_of_a_base_model_is_that_of_the_harness_or_of_the_dataset(
    sandbox, balora, tmp_path: Path, monkeypatch, task: str, row: dict, code_prompt: str | None, prompt: str
) -> None:
    """The harness of the paper strips HumanEval's prompt, and shows one test of MBPP's."""
    body = {"humaneval": "    return 2 * x\n", "mbpp": "def f(x):\n    return 2 * x\n"}[task]
    answers(monkeypatch, lambda _: body if prompt.endswith("\n") else "\n" + body)
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    flag = [] if code_prompt is None else ["--code-prompt", code_prompt]
    model = generator_at(tmp_path / "m")
    command = [
        "evaluate",
        model,
        "--tasks",
        task,
        "--data",
        f"{task}={tmp_path / 'rows.jsonl'}",
        "--output",
        tmp_path / "o",
    ]
    outcome = balora(*command, *flag)
    assert outcome.status == 0, outcome.err
    result = json.loads((tmp_path / "o" / f"{task}.json").read_text())
    assert result["samples"][0]["prompt"] == prompt
    assert result["scores"]["pass@1"] == 1.0
    assert result["identity"]["prompting"].get("code") == (None if code_prompt == "dataset" else "harness")
    other = balora(*command, "--code-prompt", "harness" if code_prompt == "dataset" else "dataset")
    assert other.status == 2
    assert "made with another" in other.err
    assert ("--code-prompt dataset continues it" in other.err) is (code_prompt == "dataset")


def test_an_unknown_code_prompt_is_refused(balora, tmp_path: Path) -> None:
    outcome = balora("evaluate", tmp_path, "--tasks", "humaneval", "--code-prompt", "harnes")
    assert outcome.status == 2
    assert "--code-prompt must be harness or dataset, not 'harnes'" in outcome.err


def test_the_identity_of_reference_solutions_has_not_changed(sandbox, tmp_path: Path, problems: Path) -> None:
    options = EvaluationOptions(data={"humaneval": str(problems)}, limit=1)
    result = evaluate("reference", ["humaneval"], output=tmp_path / "out", options=options).results["humaneval"]
    assert result["identity"]["prompting"] == {"template": "none", "separator": "", "words": False}
    assert result["identity"]["generation"]["stops"][0] == "\nclass "
    assert result["scores"]["empty_answers"] == 0 and result["scores"]["answers_at_token_limit"] == 0


def test_empty_answers_and_answers_at_the_token_limit_are_counted_and_said(
    sandbox, tmp_path: Path, problems: Path, monkeypatch
) -> None:
    fields = {
        "0/0": {"output": "", "tokens": 1, "ended": True},
        "1/0": {"output": " \n", "tokens": 2, "ended": True},
        "2/0": {"output": "    return None and so on", "tokens": 5, "ended": False},
        "3/0": {"output": "    return None\n", "tokens": 4, "ended": True},
    }
    monkeypatch.setattr(EvaluationContext, "tokenizer", None)
    monkeypatch.setattr(
        EvaluationContext, "_generate", lambda self, requests, *_: ((r, fields[r.sample]) for r in requests)
    )
    lines: list[str] = []
    options = EvaluationOptions(data={"humaneval": str(problems)})
    model = generator_at(tmp_path / "m")
    result = evaluate(model, ["humaneval"], output=tmp_path / "out", options=options, say=lines.append)
    scores = result.results["humaneval"]["scores"]
    assert scores["empty_answers"] == 2 and scores["answers_at_token_limit"] == 1
    said = "\n".join(lines)
    assert "2 of 4 answers are empty" in said and "1 of 4 answers reached the token limit" in said
    assert "empty_answers 2" in said


RIGHT = "def f(x):\n    return 2 * x\n"
WRONG = "def f(x):\n    return x\n"


@pytest.mark.parametrize(
    ("reply", "passes"),
    [
        (f"```python\ndef h(x):\n    return 2 * x\n\n{WRONG}```\nNo:\n```python\ndef f(x):\n    return h(x)\n```", True),
        (f"```\nimport math as m\ndef h(x):\n  return m.floor(2 * x)\n{WRONG}```\n```\ndef f(x):\n  return h(x)\n```", True),
        (f"```python\n{RIGHT}```\nSo the signature is\n```python\ndef f(x):\n    ...\n```", True),
        (f"```python\n{RIGHT}```\n```python\n{WRONG}```", False),
        ('````python\ndef f(x):\n    """\n```\nf(1)\n```\n    """\n    return 2 * x\n````', True),
        ("```python\ndef f(x):\n    return 2 * x```", True),
        ("~~~py\r\ndef f(x):\r\n    return 2 * x\r\n~~~\r\n", True),
        (f"Sure:\n\n{RIGHT}\nDone", True),
        (f"{RIGHT}\nNote: O(n)", True),
        (f"First:\n{WRONG}\nThat is wrong, so:\n{RIGHT}\nIt doubles.", True),
        (f"<think>{RIGHT}</think>{WRONG}", False),
        (f"<think>\n{WRONG}\n</think>\n{RIGHT}", True),
        (f"<think>\n```python\n{WRONG}```", False),
        (f"```python\n{RIGHT}```\n```python\nassert f(1) == 99\n```", True),
        (f"```python\n{RIGHT}```\nRun it:\n```python\ndef main():\n    print(f(int(input())))\n\nmain()\n```", True),
        ("```python\n>>> f(2)\n4\n```", False),
        ("```python\nf = lambda x: 2 * x\n```\nor\n```python\nf(3)\n```", True),
        ("I can't.", False),
        ("", False),
    ],
)  # fmt: skip
def test_a_reply_becomes_the_program_that_it_means(reply: str, passes: bool) -> None:
    program = add_tests(extract_code(reply, *called_names("assert f(3) == 6")), "assert f(3) == 6")
    try:
        exec(program, {})
        passed = True
    except (Exception, SystemExit):
        passed = False
    assert passed is passes, program


def test_extraction_of_long_or_odd_replies_is_quick() -> None:
    for reply in ("```\n" * 2000, "def f(\n" * 500, "~" * 100_000, "x = (" * 5000, "x = 1\n! no\n" * 300):
        started = time.monotonic()
        extract_code(reply, "f")
        assert time.monotonic() - started < 10, reply[:20]
