"""The `balora` command: thin, one file per verb, one sentence per mistake."""

from __future__ import annotations

import os
import sys

import typer

from balora.cli import compare, evaluate, export, methods, quickstart, report, reproduce, teacher, train, validate
from balora.errors import BALoraError
from balora.logging_control import quiet_libraries

app = typer.Typer(
    name="balora",
    help="Bias-alleviating low-rank fine-tuning (BA-LoRA, ICLR 2026) for the Hugging Face ecosystem.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(train.train)
app.command()(validate.validate)
app.command()(teacher.teacher)
app.command()(methods.methods)
app.command()(compare.compare)
app.command()(reproduce.reproduce)
app.command()(export.export)
app.command()(evaluate.evaluate)
app.command()(report.report)
app.command()(quickstart.quickstart)


def main() -> None:
    """Run the command; a user's mistake is one sentence and status 2, never a traceback."""
    quiet_libraries()
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


def _stop(sentence: str, status: int) -> None:
    print(f"balora: {sentence}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
