"""`balora audit`: what fine-tuning changed, for any adapter or model."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from balora.auditing.options import AuditOptions
from balora.cli.options import listed
from balora.errors import BALoraError
from balora.logging_control import quiet_libraries
from balora.terminal import wrap

if TYPE_CHECKING:
    from balora.auditing.audit import Audit

BROKEN = 3
"""Exit status if a bound of --fail-if is broken."""
_Text = functools.partial(Option, rich_help_panel="Drift and collapse")
_Data = functools.partial(Option, rich_help_panel="Training data")
_Tasks = functools.partial(Option, rich_help_panel="Tasks and social bias")


def audit(
    tuned: Annotated[
        str, typer.Argument(metavar="TUNED", help="A run directory, a peft adapter, or a model's folder or hub id.")
    ],
    base: Annotated[str | None, Option(help="Its base. Default: the model that the run or adapter names.")] = None,
    against: Annotated[str | None, Option(help="Another tuned model of this base, to show beside it.")] = None,
    output: Annotated[Path | None, Option(help="Folder to write. Default: RUN/audit or audit/NAME.")] = None,
    fail_if: Annotated[
        str | None, Option(help='Bounds such as "drift > 0.05, gsm8k < 0.3"; status 3 if one is true.')
    ] = None,
    json_file: Annotated[
        Path | None, Option("--json", help="Also write the result here; - is standard output.", show_default=False)
    ] = None,
    text: Annotated[str | None, _Text(help="File, folder or hub id with documents that are not the task's.")] = None,
    columns: Annotated[
        list[str] | None, _Text(metavar="ROLE=COLUMN", help="Column of --text, such as text=body. Can be repeated.")
    ] = None,
    documents: Annotated[int, _Text(help="Documents to draw.")] = 200,
    tokens: Annotated[int, _Text(help="Tokens of a document to read.")] = 256,
    generate: Annotated[
        int | None, _Text(help="Sequences that each model writes. Default: 64 without --text, else 0.")
    ] = None,
    generated_tokens: Annotated[int, _Text(help="Greatest length of such a sequence.")] = 128,
    weights: Annotated[bool, Option(help="Compare the weight matrices.")] = True,
    data: Annotated[str | None, _Data(help="Training data. Default: those of the run.")] = None,
    data_columns: Annotated[
        list[str] | None,
        _Data(metavar="ROLE=COLUMN", help="Column of --data, such as prompt=question. Can be repeated."),
    ] = None,
    rows: Annotated[int, _Data(help="Training rows to draw.")] = 500,
    tasks: Annotated[str | None, _Tasks(help="Evaluations of `balora evaluate`, separated by commas.")] = None,
    task_data: Annotated[
        list[str] | None, _Tasks(metavar="TASK=PATH", help="Local data of an evaluation. Can be repeated.")
    ] = None,
    task_limit: Annotated[int | None, _Tasks(help="Rows of each evaluation.")] = None,
    bias: Annotated[str | None, _Tasks(help="crows_pairs, winobias, stereoset, separated by commas.")] = None,
    bias_data: Annotated[str | None, _Tasks(metavar="DIR", help="Folder with the files of --bias.")] = None,
    batch_size: Annotated[int, Option(help="Documents or rows in a batch.")] = 8,
    seed: Annotated[int, Option(help="Seed of what is drawn, sampled and resampled.")] = 42,
    device: Annotated[str | None, Option(help="Device, such as cpu or cuda:1. Default: a GPU if there is one.")] = None,
    dtype: Annotated[
        str | None, Option(help="float32, bfloat16 or float16. Default: that of the run or checkpoint.")
    ] = None,
    trust_remote_code: Annotated[
        bool, Option("--trust-remote-code", help="Let Python code from the model's repository run.")
    ] = False,
    allow_pickle: Annotated[bool, Option("--allow-pickle", help="Allow loading weights in pickle form.")] = False,
) -> None:
    """Measure what fine-tuning changed in TUNED: drift, collapse, noise, social bias, weights, tasks. Writes one page."""
    options = AuditOptions(
        text=text, columns=_pairs(columns, "--columns"), documents=documents, tokens=tokens, generate=generate,
        generated_tokens=generated_tokens, weights=weights, data=data, data_columns=_pairs(data_columns, "--data-columns"),
        rows=rows, tasks=tuple(listed(tasks or "")), task_data=_pairs(task_data, "--task-data"), task_limit=task_limit,
        bias=tuple(listed(bias or "")), bias_data=bias_data, fail_if=fail_if, batch_size=batch_size, seed=seed, device=device,
        dtype=dtype, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle,
    )  # fmt: skip
    quiet_libraries()
    from balora.auditing.audit import audit as measure
    from balora.evaluation.results import json_safe

    to_output = json_file is not None and str(json_file) == "-"
    say = functools.partial(typer.echo, err=to_output)
    found = measure(tuned, base=base, against=against, output=output, options=options, say=say)
    if json_file is not None:
        content = json.dumps(json_safe(found.result), indent=1, ensure_ascii=False) + "\n"
        try:
            sys.stdout.write(content) if to_output else json_file.write_text(content, encoding="utf-8")
        except OSError as error:
            raise BALoraError(
                f"{json_file} cannot be written: {error.strerror or error}. Choose another --json."
            ) from error
    finish_audit(found, say)


def finish_audit(found: Audit | None, say: Callable[[str], None]) -> None:
    """Print the answers of an audit; exit with status 3 if a bound is broken."""
    if found is None:
        return
    from balora.auditing.page import PAGE, summary_lines

    say("\n".join(["", *(wrap(line) for line in summary_lines(found.result)), "", f"Report: {found.folder / PAGE}"]))
    if found.broken:
        typer.echo("\n".join(f"Bound broken: {line}" for line in found.broken), err=True)
        raise typer.Exit(BROKEN)


def _pairs(values: list[str] | None, flag: str) -> dict[str, str]:
    """Parse values of the form NAME=VALUE."""
    pairs = {}
    for value in values or []:
        name, sign, rest = value.partition("=")
        if not (name and sign and rest):
            raise BALoraError(f"{flag} must have the form NAME=VALUE, not {value!r}.")
        pairs[name] = rest
    return pairs
