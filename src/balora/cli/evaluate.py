"""`balora evaluate`: scores of a model on tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from balora.cli.options import listed, require_whole_judge
from balora.errors import BALoraError
from balora.logging_control import quiet_libraries

_JUDGE = "MT-Bench's judge"
_CODE = "Programs (HumanEval, MBPP)"
_GENERATION = "Generation"


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="RUN|MODEL",
            help="A run directory, a model's folder or hub id, or 'reference'.",
            show_default=False,
        ),
    ],
    tasks: Annotated[
        str, typer.Option(help="Names, separated by commas; 'list' prints all names.", show_default=False)
    ],
    output: Annotated[
        Path | None, typer.Option(help="Folder of the results. Default: RUN/evaluation or evaluation/MODEL.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK=PATH", help="File, folder or hub id with the rows of a task. Can be repeated."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Use only this many rows of every task, from the first.")] = None,
    batch_size: Annotated[int, typer.Option(help="Prompts or rows in a batch.")] = 8,
    device: Annotated[
        str | None, typer.Option(help="Device, such as cpu or cuda:1. Default: a GPU if there is one.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16. Default: that of the run or checkpoint.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let Python code from the model's repository run.")
    ] = False,
    allow_pickle: Annotated[bool, typer.Option("--allow-pickle", help="Allow loading weights in pickle form.")] = False,
    few_shot: Annotated[int | None, typer.Option(help="Number of examples in the prompt of an lm-eval task.")] = None,
    prompt_template: Annotated[
        str | None,
        typer.Option(
            help="none, alpaca, chat, or a text that contains {prompt}. Default: the run's.",
            rich_help_panel=_GENERATION,
        ),
    ] = None,
    engine: Annotated[str, typer.Option(help="transformers or vllm.", rich_help_panel=_GENERATION)] = "transformers",
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Maximum tokens of an answer. Default: the task's.", rich_help_panel=_GENERATION)
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(help="Sampling temperature; 0 is greedy. Default: the task's.", rich_help_panel=_GENERATION),
    ] = None,
    top_p: Annotated[
        float,
        typer.Option(help="Nucleus sampling: probability to sample from.", rich_help_panel=_GENERATION),
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Random seed of sampling.", rich_help_panel=_GENERATION)] = 42,
    samples: Annotated[int, typer.Option(help="Programs to generate per problem.", rich_help_panel=_CODE)] = 1,
    k: Annotated[str, typer.Option(help="Values of k for pass@k, such as 1,10.", rich_help_panel=_CODE)] = "1",
    code_timeout: Annotated[
        float, typer.Option(help="Time limit of a program in seconds.", rich_help_panel=_CODE)
    ] = 15.0,
    workers: Annotated[
        int | None, typer.Option(help="Programs to run at the same time.", rich_help_panel=_CODE)
    ] = None,
    unsafe_code: Annotated[
        bool, typer.Option("--unsafe-code", help="Run programs without a sandbox.", rich_help_panel=_CODE)
    ] = False,
    judge_url: Annotated[
        str | None, typer.Option(help="Base URL of an OpenAI-compatible server.", rich_help_panel=_JUDGE)
    ] = None,
    judge_model: Annotated[
        str | None, typer.Option(help="Name of the judge on that server.", rich_help_panel=_JUDGE)
    ] = None,
    judge_key_variable: Annotated[
        str, typer.Option(help="Environment variable with the API key.", rich_help_panel=_JUDGE)
    ] = "OPENAI_API_KEY",
    judge_timeout: Annotated[
        float, typer.Option(help="Time limit of one judgment in seconds.", rich_help_panel=_JUDGE)
    ] = 120.0,
) -> None:
    """Evaluate RUN or MODEL on tasks. If an evaluation was interrupted, the same command continues it."""
    if tasks == "list":
        from balora.evaluation.registry import describe_tasks

        for line in describe_tasks():
            typer.echo(line)
        return
    require_whole_judge(judge_url, judge_model)
    paths, ks = _paths(data or []), _numbers(k)
    from balora.evaluation.options import Engine, EvaluationOptions, JudgeOptions

    judge = None
    if judge_url is not None and judge_model is not None:
        judge = JudgeOptions(
            base_url=judge_url, model=judge_model, key_variable=judge_key_variable, timeout=judge_timeout
        )
    options = EvaluationOptions(
        data=paths,
        limit=limit,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        samples=samples,
        ks=ks,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        prompt_template=prompt_template,
        engine=cast(Engine, engine),
        device=device,
        dtype=dtype,
        revision=revision,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
        few_shot=few_shot,
        unsafe_code=unsafe_code,
        code_timeout=code_timeout,
        workers=workers,
        judge=judge,
    )
    quiet_libraries()
    from balora.evaluation.evaluate import evaluate as run_evaluation

    result = run_evaluation(model, listed(tasks), output=output, options=options, say=typer.echo)
    typer.echo(f"Results: {result.folder}")


def _paths(pairs: list[str]) -> dict[str, str]:
    """Parse the values of --data: a path by task."""
    paths = {}
    for pair in pairs:
        task, sign, path = pair.partition("=")
        if not (task and sign and path):
            raise BALoraError(f"--data must have the form TASK=PATH, such as gsm8k=test.jsonl, not {pair!r}.")
        paths[task] = path
    return paths


def _numbers(text: str) -> tuple[int, ...]:
    """Parse the value of --k."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise BALoraError(f"--k must be whole numbers, separated by commas, such as 1,10, not {text!r}.") from None
