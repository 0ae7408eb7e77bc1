"""`balora schema`: the JSON schema of a config, for editors."""

import json
from pathlib import Path
from typing import Annotated

import typer

from balora.cli.screen import say


def schema(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write. Default: the screen.", show_default=False)
    ] = None,
) -> None:
    """Print the JSON schema of a config, with which an editor completes keys and marks mistakes."""
    from balora.config.schema import config_schema
    from balora.files import write_text

    text = json.dumps(config_schema(), indent=1, ensure_ascii=False) + "\n"
    if output is None:
        typer.echo(text, nl=False)
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, text)
    say(f"Wrote {output}. The first line of a config beside it: # yaml-language-server: $schema={output.name}")
