"""GSM8K and MATH: the model answers the paper's prompt, and the final answer is compared as a number or an expression.

The paper's prompt, like that of MetaMath and PiSSA, is Alpaca's with a response that begins "Let's think step by step."
A run gets the prompt format of its training instead.
"""

import abc
from collections.abc import Mapping, Sequence
from typing import Any

from balora.data.files.tables import Row
from balora.errors import BALoraError
from balora.evaluation.data import HubDataset, Rows
from balora.evaluation.results import Record
from balora.evaluation.scoring.equivalence import EquivalenceChecker
from balora.evaluation.scoring.math_answers import (
    bare_answer,
    bare_number,
    final_answer,
    final_number,
    last_boxed,
    same_number,
)
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
        for index, row in enumerate(rows.rows[: self.context.options.limit], 1):
            if not self._truth(row):
                text = _text(row, self.solution)
                raise BALoraError(
                    f"Row {index} of {rows.source}: the column {self.solution!r} has no final answer "
                    f"({text[-60:]!r}). Write the answer alone, after '####', or in \\boxed{{}}."
                )
        return rows

    def _reference(self, row: Row) -> str:
        # A true answer without a marker has one in a solution that a model writes.
        solution = _text(row, self.solution)
        return solution if self._extract(solution) else f"The answer is: {self._truth(row)}"

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
    def _truth(self, row: Row) -> str | None:
        """Return the true answer of a row, or None if it has none."""

    @abc.abstractmethod
    def _extract(self, output: str) -> str | None:
        """Return the final answer in an output, or None if it has none."""

    @abc.abstractmethod
    def _is_correct(self, truth: str, extracted: str | None, checker: EquivalenceChecker) -> bool:
        """Return True if the extracted answer equals the true one."""

    def _grade(self, samples: Sequence[str]) -> None:
        """Grade all samples: grades of an earlier version may be wrong. What changes is said."""
        changed = 0
        with EquivalenceChecker() as checker, self.context.progress("grades", len(samples)) as add:
            for sample in samples:
                add(1)
                row, record = self.rows.rows[int(sample)], self.journal.records[sample]
                truth, extracted = self._truth(row) or "", self._extract(record["output"])
                correct = self._is_correct(truth, extracted, checker)
                kind: Record = {key: row[key] for key in ("subject", "type", "level") if key in row}
                grade = {**kind, "expected": truth, "extracted": extracted, "correct": correct}
                if any(key not in record or record[key] != grade[key] for key in ("expected", "extracted", "correct")):
                    changed += record.get("correct", correct) != correct
                    self.journal.add(sample, **grade)
        if changed:
            self.context.say(f"  grades that differ from those of an earlier version: {changed:,}")

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

    def _truth(self, row: Row) -> str | None:
        solution = _text(row, self.solution)
        return final_number(solution) or bare_number(solution)

    def _extract(self, output: str) -> str | None:
        return final_number(output)

    def _is_correct(self, truth: str, extracted: str | None, checker: EquivalenceChecker) -> bool:
        return same_number(truth, extracted)


class MathTask(_MathTask):
    """MATH: an answer is an expression."""

    hub = HubDataset("EleutherAI/hendrycks_math", _SUBJECTS)
    question, solution, max_new_tokens = "problem", "solution", 2048

    def _select(self, rows: Rows) -> Rows:
        # A file may have true answers without solutions.
        self.solution = rows.column("solution", "answer")
        return super()._select(rows)

    def _truth(self, row: Row) -> str | None:
        # MATH-500 has a column of true answers.
        answer, solution = _text(row, "answer"), _text(row, self.solution)
        return final_answer(answer) or answer or last_boxed(solution) or final_answer(solution) or bare_answer(solution)

    def _extract(self, output: str) -> str | None:
        return final_answer(output)

    def _is_correct(self, truth: str, extracted: str | None, checker: EquivalenceChecker) -> bool:
        return checker.is_correct(truth, extracted)


class Math500Task(MathTask):
    """MATH-500: a selection of MATH."""

    hub = HubDataset("HuggingFaceH4/MATH-500")


def _text(row: Row, column: str) -> str:
    """Return the text of a cell; a cell that is missing, empty or NaN has none."""
    value = row.get(column)
    return "" if value is None or value != value else str(value).strip()


def _fraction(values: Sequence[bool]) -> float:
    return sum(values) / len(values)
