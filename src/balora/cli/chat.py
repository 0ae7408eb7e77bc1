"""`balora chat`: talk to a model, with the pre-trained model beside it."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from balora.cli.screen import say
from balora.errors import BALoraError, suggest, suggest_path
from balora.logging_control import quiet_libraries
from balora.terminal import printable, wants_colour

if TYPE_CHECKING:
    from balora.evaluation.chat import Chat, ChatSettings

_SIDE_BY_SIDE = 60
"""Columns from which two answers are shown side by side."""
_BOLD, _END = "\x1b[1m", "\x1b[0m"
_HELP = """/reset            forget the conversation
/system TEXT      start again with a system message
/temperature X    sampling temperature; 0 is greedy (also /top_p, /max_new_tokens,
                  /repetition_penalty, /seed)
/settings         show the settings
/quit             leave (also Ctrl-D)
Ctrl-C ends an answer."""


def chat(
    model: Annotated[
        str,
        typer.Argument(
            metavar="RUN|MODEL|ADAPTER",
            help="A run directory, a model's folder or hub id, or a peft adapter.",
            show_default=False,
        ),
    ],
    once: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Answer this text and stop; - reads it from the input.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message.", show_default=False)] = None,
    base: Annotated[bool, typer.Option("--base/--no-base", help="Let the pre-trained model answer, too.")] = True,
    temperature: Annotated[float, typer.Option(help="Sampling temperature; 0 is greedy.")] = 0.7,
    top_p: Annotated[float, typer.Option(help="Nucleus sampling: probability to sample from.")] = 0.95,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1, repeated tokens become less likely.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(help="Maximum tokens of an answer.")] = 512,
    seed: Annotated[int, typer.Option(help="Random seed; base and tuned model draw the same numbers.")] = 42,
    prompt_template: Annotated[
        str | None,
        typer.Option(help="none, alpaca, chat, or a text with {prompt}. Default: as in training.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="With --once: print one JSON object.")] = False,
    device: Annotated[str | None, typer.Option(help="Device, such as cpu or cuda:1.", show_default=False)] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16. Default: that of the run or checkpoint.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let Python code from the model's repository run.")
    ] = False,
) -> None:
    """Talk to RUN, MODEL or ADAPTER. Of a run or adapter the pre-trained model answers beside the tuned one."""
    if as_json and once is None:
        raise BALoraError("--json needs --once.")
    _require_model(model)
    quiet_libraries()
    from balora.evaluation.chat import Chat, ChatSettings
    from balora.evaluation.model_under_test import ModelUnderTest
    from balora.evaluation.options import EvaluationOptions, check_prompt_template

    settings = ChatSettings(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    if prompt_template is not None:
        check_prompt_template(prompt_template)
    question = sys.stdin.read().strip() if once == "-" else once
    if question is not None and not question.strip():
        raise BALoraError("--once has no text to answer.")
    options = EvaluationOptions(dtype=dtype, revision=revision, trust_remote_code=trust_remote_code)
    opened = Chat(
        ModelUnderTest(model, options), device=device, with_base=base, system=system, template=prompt_template
    )
    if question is not None:
        _answer_once(opened, question, settings, as_json)
        return
    _converse(opened, model, settings)


def _require_model(name: str) -> None:
    from balora.data.files.hub import looks_local

    path = Path(name).expanduser()
    if looks_local(name) and not path.exists():
        raise BALoraError(f"There is no folder {name}.{suggest_path(path)}")


def _answer_once(chat: Chat, question: str, settings: ChatSettings, as_json: bool) -> None:
    """Print the answers alone: of one model as they are, of two with a heading each."""
    if as_json:
        answers = {side: chat.ask(side, question, settings, lambda text: None) for side in chat.sides}
        typer.echo(json.dumps({"prompt": question, **answers}, ensure_ascii=False))
        return
    for side in chat.sides:
        if len(chat.sides) > 1:
            typer.echo(f"{side}:")
        chat.ask(side, question, settings, _write)
        typer.echo()
    for note in chat.notes:
        say(note, err=True)


def _write(text: str) -> None:
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def _converse(chat: Chat, name: str, settings: ChatSettings) -> None:
    """Read questions until the input ends."""
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    if interactive:
        import contextlib

        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - gives input() its history and editing
        models = "base and tuned model" if len(chat.sides) > 1 else "one model"
        say(f"{name}: {models}, prompted with {chat.describe_format()}. /help lists the commands, Ctrl-D ends.")
    while True:
        try:
            question = input("\n> " if interactive else "").strip()
        except (EOFError, KeyboardInterrupt):
            typer.echo()
            return
        if not question:
            continue
        if question.startswith("/"):
            try:
                changed = _command(chat, question, settings)
            except BALoraError as error:
                say(str(error), err=True)
                continue
            if changed is None:
                return
            settings = changed
            continue
        if interactive and len(chat.sides) > 1 and shutil.get_terminal_size().columns >= _SIDE_BY_SIDE:
            _answer_side_by_side(chat, question, settings)
        else:
            _answer_below(chat, question, settings)
        for note in dict.fromkeys(chat.notes):
            say(note, err=True)
        chat.next_turn()


def _command(chat: Chat, line: str, settings: ChatSettings) -> ChatSettings | None:
    """Carry out a command and return the settings; None ends the chat."""
    word, _, rest = line[1:].partition(" ")
    name, rest = word.lower().replace("-", "_"), rest.strip()
    fields = {key: type(value) for key, value in dataclasses.asdict(settings).items()}
    if name in ("quit", "exit", "q"):
        return None
    if name in ("help", "?"):
        typer.echo(_HELP)
    elif name == "settings":
        say(", ".join(f"{key} {value}" for key, value in dataclasses.asdict(settings).items()))
        say(f"system message: {chat.system or 'none'}")
    elif name == "reset":
        chat.reset(chat.system)
        say("The conversation starts again.")
    elif name == "system":
        chat.reset(rest or None)
        say("The conversation starts again with this system message." if rest else "No system message.")
    elif name in fields:
        try:
            settings = dataclasses.replace(settings, **{name: fields[name](rest)})
        except ValueError as error:
            if isinstance(error, BALoraError):
                raise
            raise BALoraError(f"/{name} needs a number, not {rest!r}.") from None
        say(f"{name} {getattr(settings, name)}")
    else:
        raise BALoraError(
            f"There is no command /{word}.{suggest(name, ('help', 'reset', 'system', 'settings', 'quit', *fields))}"
        )
    return settings


def _answer_below(chat: Chat, question: str, settings: ChatSettings) -> None:
    """Stream the answers one below the other."""
    colour = wants_colour(sys.stdout)
    for side in chat.sides:
        if len(chat.sides) > 1:
            typer.echo(f"{_BOLD}{side}{_END}" if colour else f"{side}:")
        chat.ask(side, question, settings, _write)
        typer.echo()


def _answer_side_by_side(chat: Chat, question: str, settings: ChatSettings) -> None:
    """Stream the answers in two columns. While they grow, the last lines that fit the screen are shown."""
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    answers = dict.fromkeys(chat.sides, "")

    def columns(rows: int | None) -> Table:
        table = Table.grid(padding=(0, 1), expand=True)
        width = (console.width - 2) // 2
        for _ in answers:
            table.add_column(ratio=1, width=width)
        table.add_row(*(Text(side, style="bold") for side in answers))
        texts = [Text(answer) for answer in answers.values()]
        if rows is not None:
            texts = [Text("\n").join(text.wrap(console, width)[-rows:]) for text in texts]
        table.add_row(*texts)
        return table

    with Live(
        console=console, transient=True, refresh_per_second=8, get_renderable=lambda: columns(console.height - 4)
    ):
        for side in chat.sides:

            def write(text: str, side: str = side) -> None:
                answers[side] += printable(text)

            chat.ask(side, question, settings, write)
    console.print(columns(None))
