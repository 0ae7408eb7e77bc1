r"""From what a model wrote to a program that can be run: completions, and replies with code in them."""

from __future__ import annotations

import ast
import re
import textwrap
import warnings

_FENCE = re.compile(r"^([^\n`]*)```[ \t]*([^\s`]*)[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL | re.MULTILINE)
_PYTHON = ("", "python", "python3", "py", "py3")
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
    r"""The code in a reply: its Python block (the one that defines ``name``, else the first) and the others with helpers,
    or from its first line of code.

    Example:
        >>> code_in("Sure!\n```python\ndef one():\n    return 1\n```\nThis returns 1.")
        'def one():\n    return 1\n'
        >>> code_in("Here it is:\ndef one():\n    return 1")
        'def one():\n    return 1'
    """
    fenced = [(match[2].lower(), _unindented(match[3]) if match[1] else match[3]) for match in _FENCE.finditer(reply)]
    if fenced:
        blocks = [block for tag, block in fenced if tag in _PYTHON and _parsed(block)] or [block for _, block in fenced]
        chosen = next((block for block in blocks if name and defines(block, name)), blocks[0])
        return _with_helpers(chosen, blocks)
    start = _CODE_LINE.search(reply)
    return reply[start.start() :] if start and not reply.startswith((" ", "\t")) else reply


def _parsed(block: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(textwrap.dedent(block))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _unindented(block: str) -> str:
    """A block from within a list, without the list's indentation; a function's body keeps its own."""
    plain = textwrap.dedent(block)
    return plain if re.search(r"^(?:async\s+def|def|class|import|from)\b", plain, re.MULTILINE) else block


def _with_helpers(chosen: str, blocks: list[str]) -> str:
    """The chosen block and, as they stand, the others that define functions which no block before them does."""
    taken, known = [], _functions(chosen)
    for block in blocks:
        new = _functions(block)
        if block == chosen:
            taken.append(block)
        elif new and not new & known and not all(name.lower().startswith("test") for name in new):
            taken.append(block)
            known |= new
    return "\n".join(taken)


def _functions(block: str) -> set[str]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    tree = _parsed(block)
    return {node.name for node in tree.body if isinstance(node, kinds)} if tree else set()


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
