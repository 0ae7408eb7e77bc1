"""HumanEval and MBPP: programs written by the model, run in the sandbox against their tests, pass@k.

A plain model continues the code it is shown, which is how both sets were meant (and the paper's harness asks). A run that
was trained with a template, or a chat model, is asked in words, and the code is taken out of its reply.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from balora.evaluation.context import Request, Session
from balora.evaluation.data import Origin, Rows
from balora.evaluation.results import Journal, Record
from balora.evaluation.sandbox.sandbox import Limits, Sandbox
from balora.evaluation.scoring.pass_at_k import mean_pass_at_k
from balora.evaluation.scoring.programs import code_in, complete, tested

_MBPP_TEST = range(11, 511)
"""MBPP's test split by task id; the other rows are for prompts, training and validation."""
_COMPLETE = (
    "Complete the following Python function. Answer with the whole function in one code block.\n\n```python\n{}```"
)
_SOLVE = "{}\nAnswer with one Python code block. Your code should pass these tests:\n\n```python\n{}\n```"


@dataclasses.dataclass(frozen=True)
class CodeTask:
    """A set of programming problems with tests."""

    name: str
    summary: str
    origin: Origin
    stops: tuple[str, ...]
    """Where a completion has left the function, in a plain continuation."""
    max_new_tokens: int
    shown: Callable[[Record], str]
    """The code that is to be continued."""
    asked: Callable[[Record], str]
    """The same as a question."""
    program: Callable[[Record, str, bool], str]
    """Row, answer, whether the answer is a reply in words: the program with its tests."""
    reference: Callable[[Record], str]


def _humaneval_program(row: Record, answer: str, words: bool) -> str:
    name = str(row["entry_point"])
    body = code_in(answer, name) if words else answer
    return tested(complete(str(row["prompt"]), body, name), f"{row['test']}\ncheck({name})")


def _mbpp_text(row: Record) -> str:
    return str(row.get("text") or row["prompt"])  # the sanitized half calls it prompt


def _mbpp_shown(row: Record) -> str:
    tests = "\n".join(row["test_list"])
    return f'"""\n{_mbpp_text(row)}\n{tests}\n"""\n'


def _mbpp_program(row: Record, answer: str, words: bool) -> str:
    setup = row.get("test_setup_code") or "\n".join(row.get("test_imports") or [])
    tests = "\n".join([str(setup), *row["test_list"]])
    return tested(code_in(answer) if words else answer, tests)


TASKS = {
    task.name: task
    for task in (
        CodeTask(
            "humaneval", "Python functions from their docstrings: pass@k", Origin("openai/openai_humaneval"),
            ("\nclass ", "\ndef ", "\n#", "\n@", "\nif ", "\nprint(", "\n```", "\nassert "), 512,
            shown=lambda row: str(row["prompt"]),
            asked=lambda row: _COMPLETE.format(row["prompt"]),
            program=_humaneval_program,
            reference=lambda row: str(row["canonical_solution"]),
        ),
        CodeTask(
            "mbpp", "basic Python problems: pass@k", Origin("google-research-datasets/mbpp", ("full",)),
            ("\nassert ", '\n"""', "\nprint(", "\nif __name__", "\n```", "\n# Test"), 512,
            shown=_mbpp_shown,
            asked=lambda row: _SOLVE.format(_mbpp_text(row), "\n".join(row["test_list"])),
            program=_mbpp_program,
            reference=lambda row: str(row["code"]),
        ),
    )
}  # fmt: skip


def evaluate_code(session: Session, name: str) -> Record:
    """Have programs written, and run them.

    Returns:
        The result; beside every program stands how it ended.

    Raises:
        BALoraError: There is no sandbox (and ``unsafe_code`` is false), the data cannot be read, or the model does not
            write text.
    """
    task, options = TASKS[name], session.options
    # Before anything is generated: hours of it would be for nothing without a place to run the programs.
    sandbox = Sandbox(Limits(seconds=options.code_timeout), unsafe=options.unsafe_code)
    if options.unsafe_code:
        session.say("  Programs run WITHOUT a sandbox: they can read, change and delete whatever you can.")
    rows = _test_rows(session.rows(name, task.origin))
    prompting = session.prompting("none", separator="")
    words = prompting.template != "none"
    sampling = session.sampling(task.max_new_tokens, stops=() if words else task.stops)
    journal = session.journal(
        name, rows, prompting={**prompting.describe(), "words": words}, generation=sampling.describe()
    )
    tokenizer = session.tokenizer
    requests = [
        Request(
            f"{number}/{sample}",
            prompting.text(tokenizer, task.asked(row)) if words else task.shown(row),
            task.reference(row),
        )
        for number, row in enumerate(session.limited(rows.rows))
        for sample in range(options.samples)
    ]
    session.write_answers(journal, requests, prompting, sampling)
    wanted = [request.sample for request in requests]
    words = words and not session.subject.is_reference
    _run_all(task, journal, wanted, rows, sandbox, words, options.workers)
    return journal.finish(
        wanted, _scores(journal, wanted, options.ks), {"data": rows.source, "sandbox": _about(sandbox)}
    )


def _test_rows(rows: Rows) -> Rows:
    """Of MBPP's whole file, the rows of the test split."""
    if "task_id" not in rows.columns:
        return rows
    ids = [row["task_id"] for row in rows.rows]
    if 1 not in ids or 974 not in ids:
        return rows
    return dataclasses.replace(rows, rows=[row for row in rows.rows if row["task_id"] in _MBPP_TEST])


def _run_all(
    task: CodeTask,
    journal: Journal,
    wanted: Sequence[str],
    rows: Rows,
    sandbox: Sandbox,
    words: bool,
    workers: int | None,
) -> None:
    """Run what has not been run, several programs at once; a verdict under other limits says nothing about these."""
    place = _about(sandbox)
    pending = [sample for sample in wanted if journal.records[sample].get("sandbox") != place]

    def program(sample: str) -> str:
        row = rows.rows[int(sample.split("/")[0])]
        return task.program(row, journal.records[sample]["output"], words)

    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        outcomes = pool.map(lambda sample: sandbox.run(program(sample)), pending)
        for sample, outcome in zip(pending, outcomes, strict=True):
            row = rows.rows[int(sample.split("/")[0])]
            journal.add(
                sample,
                problem=row.get("task_id"),
                program=program(sample),
                passed=outcome.passed,
                result=outcome.result,
                seconds=round(outcome.seconds, 3),
                sandbox=place,
            )


def _scores(journal: Journal, wanted: Sequence[str], ks: Sequence[int]) -> Record:
    verdicts: dict[str, list[bool]] = {}
    for sample in wanted:
        verdicts.setdefault(sample.split("/")[0], []).append(journal.records[sample]["passed"])
    passes = {f"pass@{k}": mean_pass_at_k(verdicts.values(), k) for k in ks}
    records = [journal.records[sample] for sample in wanted]
    return {
        "main": f"pass@{ks[0]}",
        **passes,
        "problems": len(verdicts),
        "samples": len(wanted),
        "timed_out": sum(record["result"] == "timed out" for record in records),
    }


def _about(sandbox: Sandbox) -> Record:
    return {"kind": "none" if sandbox.unsafe else "bubblewrap", **dataclasses.asdict(sandbox.limits)}


__all__ = ["TASKS", "evaluate_code"]
