"""`balora evaluate`: what a model can do, task by task."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from balora.errors import BALoraError

_JUDGE = "MT-Bench's judge"
_CODE = "Programs (HumanEval, MBPP)"
_GENERATION = "Generation"


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="RUN|MODEL", help="A run's folder, a model's folder or hub id, or 'reference'.", show_default=False
        ),
    ],
    tasks: Annotated[str, typer.Option(help="Names, with commas between them; 'list' shows them.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option(help="The folder of the results. Default: RUN/evaluation, evaluation/MODEL.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK=PLACE", help="Local file, folder or hub id of a task's rows; may be repeated."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first rows of every task.")] = None,
    batch_size: Annotated[int, typer.Option(help="Prompts or rows at once.")] = 8,
    device: Annotated[
        str | None, typer.Option(help="Such as cpu or cuda:1. Default: a GPU where there is one.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16, float16. Default: the run's, or as stored.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Code that comes with a model may run.")
    ] = False,
    allow_pickle: Annotated[bool, typer.Option("--allow-pickle", help="Weights in pickle form may be loaded.")] = False,
    few_shot: Annotated[int | None, typer.Option(help="Examples in the prompt of an lm-eval task.")] = None,
    prompt_template: Annotated[
        str | None,
        typer.Option(
            help="none, alpaca, chat, or text with {prompt}. Default: the run's.", rich_help_panel=_GENERATION
        ),
    ] = None,
    engine: Annotated[str, typer.Option(help="transformers or vllm.", rich_help_panel=_GENERATION)] = "transformers",
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Most tokens of an answer. Default: the task's.", rich_help_panel=_GENERATION)
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="0 is greedy. Default: the task's.", rich_help_panel=_GENERATION)
    ] = None,
    top_p: Annotated[float, typer.Option(help="Share that is sampled from.", rich_help_panel=_GENERATION)] = 1.0,
    seed: Annotated[int, typer.Option(help="Of sampling.", rich_help_panel=_GENERATION)] = 42,
    samples: Annotated[int, typer.Option(help="Programs per problem.", rich_help_panel=_CODE)] = 1,
    k: Annotated[str, typer.Option(help="The k of pass@k, such as 1,10.", rich_help_panel=_CODE)] = "1",
    code_timeout: Annotated[float, typer.Option(help="Seconds a program may run.", rich_help_panel=_CODE)] = 15.0,
    workers: Annotated[int | None, typer.Option(help="Programs run at once.", rich_help_panel=_CODE)] = None,
    unsafe_code: Annotated[
        bool, typer.Option("--unsafe-code", help="Run programs without a sandbox.", rich_help_panel=_CODE)
    ] = False,
    judge_url: Annotated[
        str | None, typer.Option(help="An OpenAI-compatible base URL.", rich_help_panel=_JUDGE)
    ] = None,
    judge_model: Annotated[str | None, typer.Option(help="The judge's name there.", rich_help_panel=_JUDGE)] = None,
    judge_key_variable: Annotated[
        str, typer.Option(help="Environment variable that holds the key.", rich_help_panel=_JUDGE)
    ] = "OPENAI_API_KEY",
    judge_timeout: Annotated[float, typer.Option(help="Seconds for one judgment.", rich_help_panel=_JUDGE)] = 120.0,
) -> None:
    """Measure RUN or MODEL on tasks. The same command goes on where an interrupted one stopped, and repeats nothing."""
    # Imported here: `balora --help` need not wait for it.
    from balora.evaluation.evaluate import evaluate as measure
    from balora.evaluation.options import Engine, EvaluationOptions, JudgeOptions
    from balora.evaluation.registry import describe_tasks

    if tasks == "list":
        for line in describe_tasks():
            typer.echo(line)
        return
    if (judge_url is None) != (judge_model is None):
        raise BALoraError("A judge is a URL and a model: give --judge-url and --judge-model together.")
    judge = None
    if judge_url is not None and judge_model is not None:
        judge = JudgeOptions(
            base_url=judge_url, model=judge_model, key_variable=judge_key_variable, timeout=judge_timeout
        )
    options = EvaluationOptions(
        data=_places(data or []),
        limit=limit,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        samples=samples,
        ks=_numbers(k),
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
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    result = measure(model, names, output=output, options=options, say=typer.echo)
    typer.echo(f"Results: {result.folder}")


def _places(pairs: list[str]) -> dict[str, str]:
    places = {}
    for pair in pairs:
        task, sign, place = pair.partition("=")
        if not (task and sign and place):
            raise BALoraError(f"--data is written TASK=PLACE, such as gsm8k=test.jsonl, not {pair!r}.")
        places[task] = place
    return places


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise BALoraError(f"--k is whole numbers with commas between them, such as 1,10, not {text!r}.") from None
