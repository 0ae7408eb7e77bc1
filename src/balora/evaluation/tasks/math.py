"""GSM8K and MATH: the model answers the paper's prompt, and the final answer is compared as a number or an expression.

The paper's prompt, like that of MetaMath and PiSSA, is Alpaca's with a response that begins "Let's think step by step."
A run gets the prompt format of its training instead.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any

from balora.data.readers import Row
from balora.evaluation.data import HubDataset, Rows
from balora.evaluation.results import Record
from balora.evaluation.scoring.equivalence import EquivalenceChecker
from balora.evaluation.scoring.math_answers import final_answer, final_number, last_boxed, same_number
from balora.evaluation.tasks.task import GenerationTask

STEP_BY_STEP = "Let's think step by step."
_SUBJECTS = (
    *("algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra"),
    "precalculus",
)


class _MathTask(GenerationTask):
    """Task of problems with one final answer each."""

    question: str
    """Column of the problem."""
    default_template = "alpaca"
    default_separator = " "

    def _select(self, rows: Rows) -> Rows:
        rows.column(self.question)
        rows.column(self.solution)
        return rows

    def _stops(self) -> tuple[str, ...]:
        # A model that does not stop continues with the next question under one of these headings.
        return ("\n### Instruction", "\n### Question")

    @property
    def _reply(self) -> str:
        """First words of the response: the paper's with the paper's template, else none."""
        return STEP_BY_STEP if self.prompting.template == "alpaca" else ""

    def _prompting_details(self) -> Mapping[str, Any]:
        return {"reply": self._reply}

    def _prompt(self, row: Row, tokenizer: Any) -> str:
        return self.prompting.text(tokenizer, str(row[self.question]), self._reply)

    @abc.abstractmethod
    def _compare(self, row: Row, output: str, checker: EquivalenceChecker) -> tuple[str, str | None, bool]:
        """Return the true answer, the answer in the output, and whether they are equal."""

    def _grade(self, samples: Sequence[str]) -> None:
        with EquivalenceChecker() as checker:
            for sample in self.journal.missing(samples, "correct"):
                row = self.rows.rows[int(sample)]
                truth, extracted, correct = self._compare(row, self.journal.records[sample]["output"], checker)
                kind = {key: row[key] for key in ("subject", "type", "level") if key in row}
                self.journal.add(sample, **kind, expected=truth, extracted=extracted, correct=correct)

    def _scores(self, records: Mapping[str, Record]) -> Record:
        """Return the accuracy, in total and by subject, and the fraction of answers with a final answer."""
        by_subject: dict[str, list[bool]] = {}
        for record in records.values():
            if subject := record.get("subject") or record.get("type"):
                by_subject.setdefault(str(subject), []).append(record["correct"])
        subjects = {name: _fraction(by_subject[name]) for name in sorted(by_subject)}
        return {
            "main": "accuracy",
            "accuracy": _fraction([record["correct"] for record in records.values()]),
            "answered": _fraction([record["extracted"] is not None for record in records.values()]),
            "rows": len(records),
            "prompts_cut": sum(bool(record.get("prompt_cut")) for record in records.values()),
            **({"by_subject": subjects} if subjects else {}),
        }


class GSM8KTask(_MathTask):
    """GSM8K: every answer is a number."""

    hub = HubDataset("openai/gsm8k", ("main",))
    question, solution, max_new_tokens = "question", "answer", 512

    def _compare(self, row: Row, output: str, checker: EquivalenceChecker) -> tuple[str, str | None, bool]:
        truth, extracted = final_number(str(row[self.solution])) or "", final_number(output)
        return truth, extracted, same_number(truth, extracted)


class MathTask(_MathTask):
    """MATH: an answer is an expression."""

    hub = HubDataset("EleutherAI/hendrycks_math", _SUBJECTS)
    question, solution, max_new_tokens = "problem", "solution", 2048

    def _compare(self, row: Row, output: str, checker: EquivalenceChecker) -> tuple[str, str | None, bool]:
        # MATH-500 has a column of true answers.
        truth = str(row.get("answer") or last_boxed(str(row[self.solution])) or "")
        extracted = final_answer(output)
        return truth, extracted, checker.is_correct(truth, extracted)


class Math500Task(MathTask):
    """MATH-500: a selection of MATH."""

    hub = HubDataset("HuggingFaceH4/MATH-500")


def _fraction(values: Sequence[bool]) -> float:
    return sum(values) / len(values)
