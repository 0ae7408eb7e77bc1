"""Entry point of the `balora` command: it runs a verb and prints a mistake as one message."""

import os
import sys
from typing import Annotated

import typer

import balora
from balora.cli.audit import audit
from balora.cli.compare import compare
from balora.cli.evaluate import evaluate
from balora.cli.methods import methods
from balora.cli.reproduce import reproduce
from balora.cli.verbs import export, quickstart, report, teacher, train, validate
from balora.errors import BALoraError

app = typer.Typer(name="balora", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
for verb in (train, validate, teacher, methods, compare, reproduce, export, evaluate, audit, report, quickstart):
    app.command()(verb)


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
        app()
    except BALoraError as error:
        _stop(str(error), 2)
    except KeyboardInterrupt:
        _stop("stopped. The same command resumes from the last checkpoint.", 130)
    except Exception as error:
        if os.environ.get("BALORA_TRACEBACK"):
            raise
        _stop(f"unexpected {type(error).__name__}: {error} (set BALORA_TRACEBACK=1 to see where)", 1)


def _stop(message: str, status: int) -> None:
    print(f"balora: {message}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
