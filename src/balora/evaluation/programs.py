r"""From what a model wrote to a program that can be run: completions, and replies with code in them."""

from __future__ import annotations

import re

_FENCE = re.compile(r"```[ \t]*(?:python|py|Python)?[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)
_CODE_LINE = re.compile(r"^(?:from|import|def|class|async def|@)\b|^@", re.MULTILINE)
_PREAMBLE = re.compile(r"^(?:from|import)\s.*$", re.MULTILINE)


def defines(code: str, name: str) -> bool:
    r"""Whether code defines a function (or class) of this name at its outermost level.

    Example:
        >>> defines("def add(a, b):\n    return a + b\n", "add"), defines("    return a + b\n", "add")
        (True, False)
    """
    return re.search(rf"^(?:async\s+def|def|class)\s+{re.escape(name)}\b", code, re.MULTILINE) is not None


def code_in(reply: str, name: str | None = None) -> str:
    r"""The code in a reply: its fenced block (the one that defines ``name``, else the first), or from its first line of code.

    Example:
        >>> code_in("Sure!\n```python\ndef one():\n    return 1\n```\nThis returns 1.")
        'def one():\n    return 1\n'
        >>> code_in("Here it is:\ndef one():\n    return 1")
        'def one():\n    return 1'
    """
    blocks = [match[1] for match in _FENCE.finditer(reply)]
    if blocks:
        return next((block for block in blocks if name and defines(block, name)), blocks[0])
    start = _CODE_LINE.search(reply)
    return reply[start.start() :] if start and not reply.startswith((" ", "\t")) else reply


def complete(prompt: str, answer: str, name: str) -> str:
    r"""The function that a prompt begins and an answer ends.

    Args:
        prompt: Imports, a signature and a docstring.
        answer: The function's body, or the whole function anew.
        name: The function's name.

    Returns:
        The program. Where the answer holds the whole function, the prompt's imports and helpers still stand before it.

    Example:
        >>> print(complete("import math\ndef area(r):\n", "    return math.pi * r**2\n", "area"))
        import math
        def area(r):
            return math.pi * r**2
        >>> print(complete("import math\ndef area(r):\n", "def area(r):\n    return math.pi * r**2\n", "area"))
        import math
        def area(r):
            return math.pi * r**2
    """
    if not defines(answer, name):
        return prompt + answer
    before = prompt[: match.start()] if (match := re.search(rf"^def\s+{re.escape(name)}\b", prompt, re.M)) else ""
    imports = before if before.strip() else "".join(line + "\n" for line in _PREAMBLE.findall(prompt))
    return imports + answer


def tested(program: str, tests: str) -> str:
    """A program and, after it, its tests; without either's line ends of another system."""
    return f"{program}\n\n{tests}\n".replace("\r\n", "\n")


__all__ = ["code_in", "complete", "defines", "tested"]
