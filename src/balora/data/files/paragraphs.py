"""Reader of plain text files, which have one text in each paragraph."""

import re
from pathlib import Path

from balora.errors import BALoraError


def read_paragraphs(path: Path) -> list[str]:
    r"""Return the paragraphs of a text file; blank lines separate them.

    Raises:
        BALoraError: The file cannot be read, or is not UTF-8 text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BALoraError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
    except OSError as error:
        raise BALoraError(f"{path} cannot be read: {error.strerror or error}.") from error
    return [part.strip() for part in re.split(r"\n[^\S\n]*\n", text) if part.strip()]
