"""The `balora` command: thin, one file per verb, one sentence per mistake."""

from __future__ import annotations

import logging
import os
import sys
import warnings

import transformers
import typer

from balora.cli import evaluate, export, methods, quickstart, train, validate
from balora.errors import BALoraError

app = typer.Typer(
    name="balora",
    help="Bias-alleviating low-rank fine-tuning (BA-LoRA, ICLR 2026) for the Hugging Face ecosystem.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(train.train)
app.command()(validate.validate)
app.command()(methods.methods)
app.command()(export.export)
app.command()(evaluate.evaluate)
app.command()(quickstart.quickstart)


def main() -> None:
    """Run the command; a user's mistake is one sentence and status 2, never a traceback."""
    _quiet_libraries()
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


def _quiet_libraries() -> None:
    """Keep the libraries' chatter off the screen; what matters to the user balora says itself."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("balora").setLevel(logging.INFO)
    transformers.utils.logging.disable_progress_bar()  # of loading weights; the bar of training is another
    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", module=r"(transformers|peft|trl|accelerate|torch)\b.*")


if __name__ == "__main__":
    main()
