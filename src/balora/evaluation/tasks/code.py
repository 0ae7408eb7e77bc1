"""HumanEval and MBPP: the model writes programs, the sandbox runs their tests, and pass@k is the score.

A plain model continues code, in one of two forms: that of the BigCode Evaluation Harness, which the paper used, or that of the
dataset. A run that was trained with a prompt template, or a chat model, gets an instruction, and the code is extracted from its
reply.
"""

import abc
import dataclasses
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from balora.data.files.tables import Row
from balora.errors import BALoraError
from balora.evaluation.context import EvaluationContext
from balora.evaluation.data import HubDataset, Rows
from balora.evaluation.options import InvalidOption
from balora.evaluation.results import Record
from balora.evaluation.sandbox.sandbox import Limits, Sandbox, UnitTests, packages
from balora.evaluation.scoring.pass_at_k import mean_pass_at_k
from balora.evaluation.scoring.programs import add_tests, called_names, complete_function, extract_code, tested_names
from balora.evaluation.tasks.task import GenerationTask

_MBPP_TEST = range(11, 511)
"""Task ids of MBPP's test split. The other rows are for prompts, training and validation."""


class _CodeTask(GenerationTask):
    """Task of programming problems with tests."""

    harness_stops: tuple[str, ...]
    """Strings that end a plain completion in the harness."""
    completion_stops: tuple[str, ...]
    """Strings that end a plain completion of the dataset's prompt."""
    max_new_tokens = 512
    default_template = "none"
    default_separator = ""

    def __init__(self, context: EvaluationContext, name: str) -> None:
        options = context.options
        # The sandbox is checked before anything is generated: without it, hours of generation would be lost.
        self.sandbox = Sandbox(Limits(seconds=options.code_timeout), unsafe=options.unsafe_code)
        kind = "none" if options.unsafe_code else "bubblewrap"
        # Verdicts of earlier versions, where tests and program shared a process, are made again.
        self.sandbox_identity = {"kind": kind, "tests": "own process", **dataclasses.asdict(self.sandbox.limits)}
        if names := sorted(packages()):
            self.sandbox_identity["packages"] = names
        if options.unsafe_code:
            context.say("  Programs run WITHOUT a sandbox: they can read, change and delete all your files.")
        try:
            super().__init__(context, name)
        except BALoraError as error:
            if "another prompting" not in str(error) or options.code_prompt != "harness":
                raise
            raise InvalidOption(
                "{message} If it is of an earlier version, `code_prompt` dataset continues it.", message=error
            ) from error

    @abc.abstractmethod
    def _harness_prompt(self, row: Row) -> str:
        """Return the code that a plain model continues in the harness."""

    @abc.abstractmethod
    def _completion_prompt(self, row: Row) -> str:
        """Return the code of the dataset that a plain model continues."""

    @abc.abstractmethod
    def _instruction(self, row: Row) -> str:
        """Return the same problem as an instruction."""

    @abc.abstractmethod
    def _program(self, row: Row, answer: str, is_reply: bool) -> str:
        """Return the program; ``is_reply`` means that the answer replies to an instruction."""

    @abc.abstractmethod
    def _tests(self, row: Row) -> str:
        """Return the tests of a problem's programs."""

    @property
    def _is_instruction(self) -> bool:
        """True if the prompt is an instruction, False if it is code to continue."""
        return self.prompting.template != "none"

    @property
    def _is_harness(self) -> bool:
        """True if the prompt is the harness's. Reference solutions continue the dataset's prompt."""
        is_code = not self._is_instruction and not self.context.model_under_test.is_reference
        return is_code and self.context.options.code_prompt == "harness"

    def _stops(self) -> tuple[str, ...]:
        if self._is_instruction:
            return ()
        return self.harness_stops if self._is_harness else self.completion_stops

    def _prompting_details(self) -> Mapping[str, Any]:
        # Journals without "code" have the dataset's prompt, which was once the only one.
        return {"words": self._is_instruction, **({"code": "harness"} if self._is_harness else {})}

    def _sample_names(self, index: int) -> Sequence[str]:
        return [f"{index}/{number}" for number in range(self.context.options.samples)]

    def _prompt(self, row: Row, tokenizer: Any) -> str:
        if self._is_instruction:
            return self.prompting.text(tokenizer, self._instruction(row))
        return self._harness_prompt(row) if self._is_harness else self._completion_prompt(row)

    def _grade(self, samples: Sequence[str]) -> None:
        """Run the programs in parallel. A verdict of another sandbox or other limits is made again."""
        records = self.journal.records
        pending = [sample for sample in samples if records[sample].get("sandbox") != self.sandbox_identity]
        is_reply = self._is_instruction and not self.context.model_under_test.is_reference
        rows = {sample: self.rows.rows[_problem(sample)] for sample in pending}
        programs = {name: _unix(self._program(row, records[name]["output"], is_reply)) for name, row in rows.items()}
        tests = {name: _unix(self._tests(row)) for name, row in rows.items()}
        jobs = [(programs[name], UnitTests(tests[name], tested_names(tests[name]))) for name in pending]
        workers = self.context.options.workers or os.cpu_count() or 1
        with self.context.progress("programs", len(programs)) as add, ThreadPoolExecutor(workers) as pool:
            for sample, outcome in zip(pending, pool.map(lambda job: self.sandbox.run(*job), jobs), strict=True):
                self.journal.add(
                    sample,
                    problem=rows[sample].get("task_id"),
                    program=add_tests(programs[sample], tests[sample]),
                    passed=outcome.passed,
                    result=outcome.result,
                    seconds=round(outcome.seconds, 3),
                    sandbox=self.sandbox_identity,
                )
                add(1)

    def _scores(self, records: Mapping[str, Record]) -> Record:
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

    def _result_details(self) -> Mapping[str, Any]:
        return {"sandbox": self.sandbox_identity}


def _unix(code: str) -> str:
    """Change CRLF line ends to LF."""
    return code.replace("\r\n", "\n")


def _problem(sample: str) -> int:
    """Return the row index in a sample's name."""
    return int(sample.split("/")[0])


class HumanEvalTask(_CodeTask):
    """HumanEval."""

    hub = HubDataset("openai/openai_humaneval")
    harness_stops = ("\nclass", "\ndef", "\n#", "\n@", "\nprint", "\nif", "\n```", "<file_sep>")
    completion_stops = ("\nclass ", "\ndef ", "\n#", "\n@", "\nif ", "\nprint(", "\n```", "\nassert ")
    solution = "canonical_solution"

    def _harness_prompt(self, row: Row) -> str:
        # With the last newline, the next token of most tokenizers is not one that a body begins with: base models then write
        # a comment at the margin, which is a stop string, and the answer is empty.
        return str(row["prompt"]).strip()

    def _completion_prompt(self, row: Row) -> str:
        return str(row["prompt"])

    def _instruction(self, row: Row) -> str:
        return (
            "Complete the following Python function. Answer with the whole function in one code block.\n\n"
            f"```python\n{row['prompt']}```"
        )

    def _program(self, row: Row, answer: str, is_reply: bool) -> str:
        name = str(row["entry_point"])
        body = extract_code(answer, name) if is_reply else answer
        prompt = self._harness_prompt(row) if self._is_harness else self._completion_prompt(row)
        return complete_function(prompt, body, name)

    def _tests(self, row: Row) -> str:
        return f"{row['test']}\ncheck({row['entry_point']})"


class MBPPTask(_CodeTask):
    """MBPP."""

    hub = HubDataset("google-research-datasets/mbpp", ("full",))
    harness_stops = ("\nclass", "\nassert", '\n"""', "\nprint", "\nif", "\n<|/", "\n```")
    completion_stops = ("\nassert ", '\n"""', "\nprint(", "\nif __name__", "\n```", "\n# Test")
    solution = "code"

    def _select(self, rows: Rows) -> Rows:
        ids = [row.get("task_id") for row in rows.rows]
        if 1 not in ids or 974 not in ids:  # not the complete dataset: the user has selected rows
            return rows
        return dataclasses.replace(rows, rows=[row for row in rows.rows if row["task_id"] in _MBPP_TEST])

    def _harness_prompt(self, row: Row) -> str:
        problem, tests = _problem_and_tests(row)
        return f'"""\n{problem}\n{tests[0]}\n"""\n'

    def _completion_prompt(self, row: Row) -> str:
        problem, tests = _problem_and_tests(row)
        return '"""\n{}\n{}\n"""\n'.format(problem, "\n".join(tests))

    def _instruction(self, row: Row) -> str:
        problem, tests = _problem_and_tests(row)
        text = "{}\nAnswer with one Python code block. Your code should pass these tests:\n\n```python\n{}\n```"
        return text.format(problem, "\n".join(tests))

    def _program(self, row: Row, answer: str, is_reply: bool) -> str:
        return extract_code(answer, *called_names(self._tests(row))) if is_reply else answer

    def _tests(self, row: Row) -> str:
        setup = row.get("test_setup_code") or "\n".join(row.get("test_imports") or [])
        return "\n".join([str(setup), *row["test_list"]])


def _problem_and_tests(row: Row) -> tuple[str, list[str]]:
    # The column of the problem is called prompt in the sanitized version of MBPP.
    return str(row.get("text") or row["prompt"]), list(row["test_list"])
