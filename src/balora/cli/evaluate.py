"""`balora evaluate`: scores of a model on tasks."""

import dataclasses
import functools
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option

from balora.cli.launch import rank
from balora.cli.options import check_judge, listed
from balora.errors import BALoraError
from balora.evaluation.options import EvaluationOptions, InvalidOption, JudgeOptions
from balora.logging_control import quiet_libraries

_Generation = functools.partial(Option, rich_help_panel="Generation")
_Code = functools.partial(Option, rich_help_panel="Programs (HumanEval, MBPP)")
_Judge = functools.partial(Option, rich_help_panel="MT-Bench's judge")
_MODEL_HELP = "A run directory, a model's folder or hub id, or 'reference'."


def evaluate(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="RUN|MODEL", help=_MODEL_HELP, show_default=False)],
    tasks: Annotated[
        str, Option(help="Names, separated by commas; 'list' prints all names. Only with --against may it be left out.")
    ] = "",
    against: Annotated[
        str | None,
        Option(
            metavar="OTHER",
            help="Compare the finished evaluation of RUN with that of OTHER; nothing is evaluated. Several seeds: names separated "
            "by commas on both sides, in the same order.",
        ),
    ] = None,
    output: Annotated[
        Path | None, Option(help="Folder of the results. Default: RUN/evaluation or evaluation/MODEL.")
    ] = None,
    data: Annotated[
        list[str] | None,
        Option(metavar="TASK=PATH", help="File, folder or hub id with the rows of a task. Can be repeated."),
    ] = None,
    limit: Annotated[int | None, Option(help="Use only this many rows of every task, from the first.")] = None,
    batch_size: Annotated[int, Option(help="Prompts or rows in a batch.")] = 8,
    device: Annotated[str | None, Option(help="Device, such as cpu or cuda:1. Default: a GPU if there is one.")] = None,
    dtype: Annotated[
        str | None, Option(help="float32, bfloat16 or float16. Default: that of the run or checkpoint.")
    ] = None,
    scale: Annotated[float, Option(help="Part a of a run's change to evaluate: W + a·ΔW.")] = 1.0,
    revision: Annotated[str | None, Option(help="Branch, tag or commit of a hub model.")] = None,
    trust_remote_code: Annotated[
        bool, Option("--trust-remote-code", help="Let Python code from the model's repository run.")
    ] = False,
    allow_pickle: Annotated[bool, Option("--allow-pickle", help="Allow loading weights in pickle form.")] = False,
    task_code: Annotated[
        bool, Option("--task-code", help="Let Python code run that a task file of lm-eval (lm_eval:FILE) names.")
    ] = False,
    few_shot: Annotated[int | None, Option(help="Number of examples in the prompt of an lm-eval task.")] = None,
    prompt_template: Annotated[
        str | None, _Generation(help="none, alpaca, chat, or a text that contains {prompt}. Default: the run's.")
    ] = None,
    engine: Annotated[str, _Generation(help="transformers or vllm.")] = "transformers",
    max_new_tokens: Annotated[int | None, _Generation(help="Maximum tokens of an answer. Default: the task's.")] = None,
    temperature: Annotated[
        float | None, _Generation(help="Sampling temperature; 0 is greedy. Default: the task's.")
    ] = None,
    top_p: Annotated[float, _Generation(help="Nucleus sampling: probability to sample from.")] = 1.0,
    seed: Annotated[int, _Generation(help="Random seed of sampling.")] = 42,
    code_prompt: Annotated[
        str, _Code(help="Code to continue: that of the BigCode harness, as in the paper, or of the dataset.")
    ] = "harness",
    samples: Annotated[int, _Code(help="Programs to generate per problem.")] = 1,
    k: Annotated[str, _Code(help="Values of k for pass@k, such as 1,10.")] = "1",
    code_timeout: Annotated[float, _Code(help="Time limit of a program in seconds.")] = 15.0,
    workers: Annotated[int | None, _Code(help="Programs to run at the same time.")] = None,
    unsafe_code: Annotated[bool, _Code("--unsafe-code", help="Run programs without a sandbox.")] = False,
    judge_url: Annotated[str | None, _Judge(help="Base URL of an OpenAI-compatible server.")] = None,
    judge_model: Annotated[str | None, _Judge(help="Name of the judge on that server.")] = None,
    judge_key_variable: Annotated[str, _Judge(help="Environment variable with the API key.")] = "OPENAI_API_KEY",
    judge_timeout: Annotated[float, _Judge(help="Time limit of one judgment in seconds.")] = 120.0,
) -> None:
    """Evaluate RUN or MODEL on tasks. If an evaluation was interrupted, the same command continues it."""
    if tasks == "list":
        from balora.evaluation.registry import describe_tasks

        typer.echo("\n".join(describe_tasks()))
        return
    if against is not None:
        _compare(listed(model), listed(against), listed(tasks) if tasks else [], output)
        return
    if not tasks:
        raise BALoraError("Name the tasks with --tasks, separated by commas; --tasks list prints all names.")
    try:
        _evaluate(context, model, tasks, output, _paths(data or []), _numbers(k))
    except InvalidOption as error:
        raise BALoraError(error.for_command()) from error
    except BALoraError as error:
        raise BALoraError(_with_flags(str(error))) from error


def _compare(own: list[str], other: list[str], tasks: list[str], output: Path | None) -> None:
    """Print the comparison of finished evaluations; with ``output``, also write it as JSON."""
    from balora.evaluation.significance.against import compare_evaluations, lines, to_json
    from balora.files import write_text

    found = compare_evaluations(own, other, tasks)
    typer.echo("\n".join(lines(found)))
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        write_text(output / "against.json", to_json(found))
        typer.echo(f"Comparison: {output / 'against.json'}")


def _evaluate(
    context: typer.Context, model: str, tasks: str, output: Path | None, data: dict[str, str], ks: tuple[int, ...]
) -> None:
    judge_url, judge_model = context.params["judge_url"], context.params["judge_model"]
    check_judge(judge_url, judge_model)
    chosen: dict[str, Any] = {"data": data, "ks": ks}
    from balora.evaluation.registry import find_tasks

    if judge_url is not None and judge_model is not None:
        chosen["judge"] = JudgeOptions(
            base_url=judge_url,
            model=judge_model,
            key_variable=context.params["judge_key_variable"],
            timeout=context.params["judge_timeout"],
        )
    # The other options have the names of the fields.
    fields = {field.name for field in dataclasses.fields(EvaluationOptions)} - chosen.keys()
    options = EvaluationOptions(**chosen, **{name: context.params[name] for name in fields & context.params.keys()})
    find_tasks(listed(tasks), task_code=options.task_code)  # a misspelt name is reported before torch is imported
    quiet_libraries(errors_only=rank() > 0)
    from balora.evaluation.evaluate import evaluate as run_evaluation

    result = run_evaluation(model, listed(tasks), output=output, options=options, say=typer.echo, distributed=True)
    if rank() == 0:
        typer.echo(f"Results: {result.folder}")


_KEYS = {
    "set allow_pickle: true": "give --allow-pickle",
    "set trust_remote_code: true": "give --trust-remote-code",
    "(data.train)": "(--data)",
    "in data.train": "in --data TASK=PATH",
    "data.name None, ": "",
}
"""Config keys in messages of code that reads a run's config, too, and the flags that set the same."""


def _with_flags(message: str) -> str:
    """Name flags of the command in place of config keys."""
    for key, flag in _KEYS.items():
        message = message.replace(key, flag)
    return message


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
