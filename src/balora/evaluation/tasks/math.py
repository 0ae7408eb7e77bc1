"""GSM8K and MATH: the paper's prompt, greedy answers, the final answer compared as a number or as an expression.

The prompt is Alpaca's, and the response begins with "Let's think step by step." The paper follows MetaMath and PiSSA in
this. A run gets the prompt format of its training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from balora.data.readers import Row
from balora.evaluation.context import EvaluationContext
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


@dataclasses.dataclass(frozen=True)
class MathDataset:
    """Problems with one final answer each."""

    hub: HubDataset
    question: str
    """Column of the problem."""
    solution: str
    """Column of the worked solution."""
    max_new_tokens: int
    numeric: bool
    """True if every answer is a number and is compared as one."""


DATASETS = {
    "gsm8k": MathDataset(HubDataset("openai/gsm8k", ("main",)), "question", "answer", 512, True),
    "math": MathDataset(HubDataset("EleutherAI/hendrycks_math", _SUBJECTS), "problem", "solution", 2048, False),
    "math500": MathDataset(HubDataset("HuggingFaceH4/MATH-500"), "problem", "solution", 2048, False),
}
"""Dataset of each task, by task name."""


class MathTask(GenerationTask):
    """GSM8K, MATH or MATH-500."""

    default_template = "alpaca"
    default_separator = " "

    def __init__(self, context: EvaluationContext, name: str) -> None:
        self.dataset = DATASETS[name]
        super().__init__(context, name, self.dataset.hub, self.dataset.max_new_tokens)

    def select(self, rows: Rows) -> Rows:
        """Check that the columns of problem and solution exist."""
        rows.column(self.dataset.question)
        rows.column(self.dataset.solution)
        return rows

    def stops(self) -> tuple[str, ...]:
        """Return the headings with which a model that does not stop asks itself the next question."""
        return ("\n### Instruction", "\n### Question")

    @property
    def _reply(self) -> str:
        """First words of the response: the paper's with the paper's template, else none."""
        return STEP_BY_STEP if self.prompting.template == "alpaca" else ""

    def prompting_details(self) -> Mapping[str, Any]:
        """Return the first words of the response."""
        return {"reply": self._reply}

    def prompt(self, row: Row, tokenizer: Any) -> str:
        """Return the problem in the prompt format, with the first words of the response."""
        return self.prompting.text(tokenizer, str(row[self.dataset.question]), self._reply)

    def reference(self, row: Row) -> str:
        """Return the worked solution."""
        return str(row[self.dataset.solution])

    def grade(self, samples: Sequence[str]) -> None:
        """Extract each final answer and compare it with the true one."""
        with EquivalenceChecker() as checker:
            for sample in self.journal.missing(samples, "correct"):
                row = self.rows.rows[int(sample)]
                output = self.journal.records[sample]["output"]
                truth = self._true_answer(row)
                if self.dataset.numeric:
                    extracted = final_number(output)
                    correct = same_number(truth, extracted)
                else:
                    extracted = final_answer(output)
                    correct = checker.is_correct(truth, extracted)
                kind = {key: row[key] for key in ("subject", "type", "level") if key in row}
                self.journal.add(sample, **kind, expected=truth, extracted=extracted, correct=correct)

    def _true_answer(self, row: Row) -> str:
        """Return the answer column of MATH-500, else the final answer of the worked solution."""
        if self.dataset.numeric:
            return final_number(self.reference(row)) or ""
        return str(row.get("answer") or last_boxed(self.reference(row)) or "")

    def scores(self, records: Mapping[str, Record]) -> Record:
        """Return the accuracy, in total and by subject, and the fraction of answers with a final answer."""
        by_subject: dict[str, list[bool]] = {}
        for record in records.values():
            if subject := record.get("subject") or record.get("type"):
                by_subject.setdefault(str(subject), []).append(record["correct"])
        return {
            "main": "accuracy",
            "accuracy": _fraction([record["correct"] for record in records.values()]),
            "answered": _fraction([record["extracted"] is not None for record in records.values()]),
            "rows": len(records),
            "prompts_cut": sum(bool(record.get("prompt_cut")) for record in records.values()),
            **(
                {"by_subject": {name: _fraction(by_subject[name]) for name in sorted(by_subject)}} if by_subject else {}
            ),
        }


def _fraction(values: Sequence[bool]) -> float:
    return sum(values) / len(values)


__all__ = ["DATASETS", "MathTask"]
