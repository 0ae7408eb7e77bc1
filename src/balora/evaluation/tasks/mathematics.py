r"""GSM8K and MATH: the paper's prompt, greedy, the final answer compared as a number or as an expression.

The prompt is the Alpaca form, and the response begins with "Let's think step by step." (the paper follows MetaMath and
PiSSA in this). A run is asked in the form it was trained in.
"""

from __future__ import annotations

import dataclasses

from balora.evaluation.context import Request, Session
from balora.evaluation.data import Origin, Rows
from balora.evaluation.prompting import Prompting
from balora.evaluation.results import Journal, Record
from balora.evaluation.scoring.equivalence import EquivalenceChecker
from balora.evaluation.scoring.math_answers import contradicts, final_answer, final_number, last_boxed, same_number

STEP_BY_STEP = "Let's think step by step."
_NEXT_QUESTION = ("\n### Instruction", "\n### Question")
"""Where a model that does not stop goes on to ask itself the next thing."""
_SUBJECTS = (
    *("algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra"),
    "precalculus",
)


@dataclasses.dataclass(frozen=True)
class MathTask:
    """A set of problems with one final answer each."""

    name: str
    summary: str
    origin: Origin
    question: str
    solution: str
    max_new_tokens: int
    numeric: bool
    """Whether every answer is a number, and compared as one."""


TASKS = {
    task.name: task
    for task in (
        MathTask(
            "gsm8k", "grade-school word problems", Origin("openai/gsm8k", ("main",)), "question", "answer", 512, True
        ),
        MathTask(
            "math", "MATH, competition problems", Origin("EleutherAI/hendrycks_math", _SUBJECTS),
            "problem", "solution", 2048, False,
        ),
        MathTask(
            "math500", "MATH-500, competition problems", Origin("HuggingFaceH4/MATH-500"),
            "problem", "solution", 2048, False,
        ),
    )
}  # fmt: skip


def evaluate_math(session: Session, name: str) -> Record:
    """Have the problems solved, and compare the final answers.

    Returns:
        The result; beside every answer stands what was taken from it.

    Raises:
        BALoraError: The data cannot be read, or the model does not write text.
    """
    task = TASKS[name]
    rows = session.rows(name, task.origin)
    question, solution = rows.column(task.question), rows.column(task.solution)
    prompting = session.prompting("alpaca", separator=" ")
    sampling = session.sampling(task.max_new_tokens, stops=_NEXT_QUESTION)
    reply = _reply(prompting)
    journal = session.journal(
        name, rows, prompting={**prompting.describe(), "reply": reply}, generation=sampling.describe()
    )
    tokenizer = session.tokenizer
    requests = [
        Request(str(number), prompting.text(tokenizer, str(row[question]), reply), str(row[solution]))
        for number, row in enumerate(session.limited(rows.rows))
    ]
    session.write_answers(journal, requests, prompting, sampling)
    wanted = [request.sample for request in requests]
    _compare(task, journal, wanted, rows)
    return journal.finish(wanted, _scores(journal, wanted), {"data": rows.source})


def _reply(prompting: Prompting) -> str:
    """How the response begins: as in the paper under the paper's template, else as the template leaves it."""
    return STEP_BY_STEP if prompting.template == "alpaca" else ""


def _compare(task: MathTask, journal: Journal, wanted: list[str], rows: Rows) -> None:
    with EquivalenceChecker() as checker:
        for sample in journal.missing(wanted, "correct"):
            row = rows.rows[int(sample)]
            truth = _truth(task, row)
            output = journal.records[sample]["output"]
            if task.numeric:
                extracted = final_number(output)
                correct = same_number(truth, extracted)
            else:
                extracted = final_answer(output)
                correct = _equal(checker, truth, extracted)
            kind = {key: row[key] for key in ("subject", "type", "level") if key in row}
            journal.add(sample, **kind, expected=truth, extracted=extracted, correct=correct)


def _equal(checker: EquivalenceChecker, truth: str, found: str | None) -> bool:
    return found is not None and not contradicts(truth, found) and checker.equal(truth, found)


def _truth(task: MathTask, row: Record) -> str:
    """The true answer: its own column in MATH-500, else what the reference solution ends on."""
    if not task.numeric and row.get("answer"):
        return str(row["answer"])
    solution = str(row[task.solution])
    found = final_number(solution) if task.numeric else last_boxed(solution)
    return found or ""


def _scores(journal: Journal, wanted: list[str]) -> Record:
    """Accuracy, and the share of answers in which a final answer was found at all."""
    records = [journal.records[sample] for sample in wanted]
    kinds = sorted({str(kind) for record in records if (kind := _kind(record))})
    by_kind = {kind: _share([record["correct"] for record in records if str(_kind(record)) == kind]) for kind in kinds}
    return {
        "main": "accuracy",
        "accuracy": _share([record["correct"] for record in records]),
        "answered": _share([record["extracted"] is not None for record in records]),
        "rows": len(records),
        "prompts_cut": sum(bool(record.get("prompt_cut")) for record in records),
        **({"by_subject": by_kind} if by_kind else {}),
    }


def _kind(record: Record) -> object:
    return record.get("subject") or record.get("type")


def _share(truths: list[bool]) -> float:
    return sum(truths) / len(truths)


__all__ = ["TASKS", "evaluate_math"]
