"""Entry point of the `balora` command: it runs a verb and prints a mistake as one message."""

import contextlib
import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer

import balora
from balora.cli.audit import audit
from balora.cli.chat import chat
from balora.cli.compare import compare
from balora.cli.evaluate import evaluate
from balora.cli.init import init
from balora.cli.inspect import inspect
from balora.cli.methods import methods
from balora.cli.reproduce import reproduce
from balora.cli.schema import schema
from balora.cli.screen import say
from balora.cli.verbs import export, quickstart, report, teacher, train, validate
from balora.errors import BALoraError, Interrupted, hide_passwords
from balora.signals import signal_handlers


def _reporting_interrupts(verb: Callable[..., None]) -> Callable[..., None]:
    """Bring a KeyboardInterrupt of a verb past typer, which would end the process without a word."""

    @functools.wraps(verb)
    def call(*args: Any, **kwargs: Any) -> None:
        try:
            verb(*args, **kwargs)
        except KeyboardInterrupt as error:
            raise _PastTyper(error) from error

    return call


class _PastTyper(Exception):
    """Envelope of a KeyboardInterrupt."""

    def __init__(self, interrupt: KeyboardInterrupt) -> None:
        super().__init__(interrupt)
        self.interrupt = interrupt


app = typer.Typer(name="balora", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
for verb in (
    init,
    inspect,
    train,
    chat,
    validate,
    teacher,
    methods,
    compare,
    reproduce,
    export,
    evaluate,
    audit,
    report,
    quickstart,
    schema,
):
    app.command()(_reporting_interrupts(verb))


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"balora {balora.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Bias-alleviating low-rank fine-tuning (BA-LoRA, ICLR 2026) for the Hugging Face ecosystem."""


def main() -> None:
    """Run the command. A mistake by the user ends in one message and status 2, without a traceback."""
    try:
        with _interrupted_by_sigterm():
            try:
                app()
            except _PastTyper as envelope:
                raise envelope.interrupt from None
    except BALoraError as error:
        if getattr(error, "spoken", False):  # another process of the run has printed it
            sys.exit(2)
        _stop(str(error), 2)
    except KeyboardInterrupt as error:
        message = str(error) or "stopped. Run the same command again to continue."
        _stop(message, error.exit_status if isinstance(error, Interrupted) else 130)
    except Exception as error:
        if os.environ.get("BALORA_TRACEBACK"):
            raise
        _stop(f"unexpected {type(error).__name__}: {error} (set BALORA_TRACEBACK=1 to see where)", 1)


@contextlib.contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """Raise `Interrupted` on SIGTERM, so that files are closed and child processes ended as after Ctrl-C."""

    def interrupt(number: int, _: object) -> None:
        raise Interrupted(signal_number=number)

    with signal_handlers({signal.SIGTERM: interrupt}):
        yield


def _stop(message: str, status: int) -> None:
    say(f"balora: {hide_passwords(message)}", err=True)
    sys.exit(status)


if __name__ == "__main__":
    main()
