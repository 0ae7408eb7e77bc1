"""HumanEval and MBPP: the model writes programs, the sandbox runs their tests, and pass@k is the score.

A plain model continues the code of the prompt, as both datasets intend and the paper does. A run that was trained with a
prompt template, or a chat model, gets an instruction, and the code is extracted from its reply.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from balora.data.readers import Row
from balora.evaluation.context import EvaluationContext
from balora.evaluation.data import HubDataset, Rows
from balora.evaluation.options import EvaluationOptions
from balora.evaluation.results import Record
from balora.evaluation.sandbox.sandbox import Limits, Sandbox
from balora.evaluation.scoring.pass_at_k import mean_pass_at_k
from balora.evaluation.scoring.programs import add_tests, complete_function, extract_code
from balora.evaluation.tasks.task import GenerationTask

_MBPP_TEST = range(11, 511)
"""Task ids of MBPP's test split. The other rows are for prompts, training and validation."""


@dataclasses.dataclass(frozen=True)
class CodeDataset:
    """Programming problems with tests."""

    hub: HubDataset
    stops: tuple[str, ...]
    """Strings that end the function in a plain completion."""
    completion_prompt: Callable[[Row], str]
    """Returns the code that a plain model continues."""
    instruction: Callable[[Row], str]
    """Returns the same problem as an instruction."""
    program: Callable[[Row, str, bool], str]
    """Returns the program with its tests, given the row, the answer, and whether the answer is a reply to an instruction."""
    solution: str
    """Column of the reference solution."""
    max_new_tokens: int = 512


def _humaneval_instruction(row: Row) -> str:
    return (
        "Complete the following Python function. Answer with the whole function in one code block.\n\n"
        f"```python\n{row['prompt']}```"
    )


def _humaneval_program(row: Row, answer: str, is_reply: bool) -> str:
    name = str(row["entry_point"])
    body = extract_code(answer, name) if is_reply else answer
    return add_tests(complete_function(str(row["prompt"]), body, name), f"{row['test']}\ncheck({name})")


def _mbpp_text(row: Row) -> str:
    return str(row.get("text") or row["prompt"])  # the column is called prompt in the sanitized version


def _mbpp_completion_prompt(row: Row) -> str:
    tests = "\n".join(row["test_list"])
    return f'"""\n{_mbpp_text(row)}\n{tests}\n"""\n'


def _mbpp_instruction(row: Row) -> str:
    tests = "\n".join(row["test_list"])
    return (
        f"{_mbpp_text(row)}\nAnswer with one Python code block. Your code should pass these tests:\n\n"
        f"```python\n{tests}\n```"
    )


def _mbpp_program(row: Row, answer: str, is_reply: bool) -> str:
    setup = row.get("test_setup_code") or "\n".join(row.get("test_imports") or [])
    tests = "\n".join([str(setup), *row["test_list"]])
    return add_tests(extract_code(answer) if is_reply else answer, tests)


DATASETS = {
    "humaneval": CodeDataset(
        HubDataset("openai/openai_humaneval"),
        ("\nclass ", "\ndef ", "\n#", "\n@", "\nif ", "\nprint(", "\n```", "\nassert "),
        completion_prompt=lambda row: str(row["prompt"]),
        instruction=_humaneval_instruction,
        program=_humaneval_program,
        solution="canonical_solution",
    ),
    "mbpp": CodeDataset(
        HubDataset("google-research-datasets/mbpp", ("full",)),
        ("\nassert ", '\n"""', "\nprint(", "\nif __name__", "\n```", "\n# Test"),
        completion_prompt=_mbpp_completion_prompt,
        instruction=_mbpp_instruction,
        program=_mbpp_program,
        solution="code",
    ),
}
"""Dataset of each task, by task name."""


class CodeTask(GenerationTask):
    """HumanEval or MBPP.

    Raises:
        BALoraError: There is no sandbox and ``unsafe_code`` is false, or the data cannot be read.
    """

    default_template = "none"
    default_separator = ""

    def __init__(self, context: EvaluationContext, name: str) -> None:
        self.dataset = DATASETS[name]
        options = context.options
        # The sandbox is checked before anything is generated: without it, hours of generation would be lost.
        self.sandbox = Sandbox(Limits(seconds=options.code_timeout), unsafe=options.unsafe_code)
        if options.unsafe_code:
            context.say("  Programs run WITHOUT a sandbox: they can read, change and delete all your files.")
        super().__init__(context, name, self.dataset.hub, self.dataset.max_new_tokens)

    def select(self, rows: Rows) -> Rows:
        """Select the test split if the rows are the complete MBPP."""
        ids = [row.get("task_id") for row in rows.rows]
        if 1 not in ids or 974 not in ids:
            return rows
        return dataclasses.replace(rows, rows=[row for row in rows.rows if row["task_id"] in _MBPP_TEST])

    @property
    def _is_instruction(self) -> bool:
        """True if the prompt is an instruction, False if it is code to continue."""
        return self.prompting.template != "none"

    def stops(self) -> tuple[str, ...]:
        """Return the strings that end a plain completion; a reply to an instruction has none."""
        return () if self._is_instruction else self.dataset.stops

    def prompting_details(self) -> Mapping[str, Any]:
        """Return whether the prompt is an instruction."""
        return {"words": self._is_instruction}

    def sample_names(self, index: int, options: EvaluationOptions) -> Sequence[str]:
        """Return one name per generated program of a problem."""
        return [f"{index}/{number}" for number in range(options.samples)]

    def prompt(self, row: Row, tokenizer: Any) -> str:
        """Return the instruction in the prompt format, or the code to continue."""
        if self._is_instruction:
            return self.prompting.text(tokenizer, self.dataset.instruction(row))
        return self.dataset.completion_prompt(row)

    def reference(self, row: Row) -> str:
        """Return the reference solution."""
        return str(row[self.dataset.solution])

    def grade(self, samples: Sequence[str]) -> None:
        """Run the programs in parallel, also those whose verdict is of another sandbox or other limits."""
        sandbox = self._describe_sandbox()
        pending = [sample for sample in samples if self.journal.records[sample].get("sandbox") != sandbox]
        is_reply = self._is_instruction and not self.context.subject.is_reference
        rows = [self.rows.rows[_problem(sample)] for sample in pending]
        programs = [
            self.dataset.program(row, self.journal.records[sample]["output"], is_reply)
            for sample, row in zip(pending, rows, strict=True)
        ]
        with ThreadPoolExecutor(self.context.options.workers or os.cpu_count() or 1) as pool:
            outcomes = pool.map(self.sandbox.run, programs)
            for sample, row, program, outcome in zip(pending, rows, programs, outcomes, strict=True):
                self.journal.add(
                    sample,
                    problem=row.get("task_id"),
                    program=program,
                    passed=outcome.passed,
                    result=outcome.result,
                    seconds=round(outcome.seconds, 3),
                    sandbox=sandbox,
                )

    def scores(self, records: Mapping[str, Record]) -> Record:
        """Return pass@k for every k, and counts."""
        verdicts: dict[int, list[bool]] = {}
        for sample, record in records.items():
            verdicts.setdefault(_problem(sample), []).append(record["passed"])
        ks = self.context.options.ks
        return {
            "main": f"pass@{ks[0]}",
            **{f"pass@{k}": mean_pass_at_k(verdicts.values(), k) for k in ks},
            "problems": len(verdicts),
            "samples": len(records),
            "timed_out": sum(record["result"] == "timed out" for record in records.values()),
        }

    def details(self) -> Mapping[str, Any]:
        """Return the kind and the limits of the sandbox."""
        return {"sandbox": self._describe_sandbox()}

    def _describe_sandbox(self) -> Record:
        kind = "none" if self.sandbox.unsafe else "bubblewrap"
        return {"kind": kind, **dataclasses.asdict(self.sandbox.limits)}


def _problem(sample: str) -> int:
    """Return the row index in a sample's name."""
    return int(sample.split("/")[0])


__all__ = ["DATASETS", "CodeTask"]
