r"""Turn a model's answer, a completion or a reply with code blocks, into a program that can be run."""

import ast
import re
import textwrap
import warnings

_FENCE = re.compile(r"^([^\n`]*)```[ \t]*([^\s`]*)[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL | re.MULTILINE)
_PYTHON = ("", "python", "python3", "py", "py3")
_CODE_LINE = re.compile(r"^(?:from|import|def|class|async def|@)\b|^@", re.MULTILINE)
_PREAMBLE = re.compile(r"^(?:from|import)\s.*$", re.MULTILINE)


def defines(code: str, name: str) -> bool:
    r"""Return True if code defines a function or class of this name at its outermost level.

    Example:
        >>> defines("def add(a, b):\n    return a + b\n", "add"), defines("    return a + b\n", "add")
        (True, False)
    """
    return re.search(rf"^(?:async\s+def|def|class)\s+{re.escape(name)}\b", code, re.MULTILINE) is not None


def extract_code(reply: str, name: str | None = None) -> str:
    r"""Return the code in a reply.

    With code blocks, it is the Python block that defines ``name``, else the first one, together with the blocks that
    define helpers. Without code blocks, it is the text from the first line of code.

    Example:
        >>> extract_code("Sure!\n```python\ndef one():\n    return 1\n```\nThis returns 1.")
        'def one():\n    return 1\n'
        >>> extract_code("Here it is:\ndef one():\n    return 1")
        'def one():\n    return 1'
    """
    fenced = [(match[2].lower(), _unindent(match[3]) if match[1] else match[3]) for match in _FENCE.finditer(reply)]
    if fenced:
        blocks = [block for tag, block in fenced if tag in _PYTHON and _parse(block)] or [block for _, block in fenced]
        chosen = next((block for block in blocks if name and defines(block, name)), blocks[0])
        return _add_helpers(chosen, blocks)
    start = _CODE_LINE.search(reply)
    return reply[start.start() :] if start and not reply.startswith((" ", "\t")) else reply


def _parse(block: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(textwrap.dedent(block))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _unindent(block: str) -> str:
    """Remove the indentation of a list item from a block. The body of a function keeps its indentation."""
    plain = textwrap.dedent(block)
    return plain if re.search(r"^(?:async\s+def|def|class|import|from)\b", plain, re.MULTILINE) else block


def _add_helpers(chosen: str, blocks: list[str]) -> str:
    """Join the chosen block with the blocks that define new functions, in order. Blocks that only define tests are left out."""
    taken, known = [], _defined_names(chosen)
    for block in blocks:
        new = _defined_names(block)
        if block == chosen:
            taken.append(block)
        elif new and not new & known and not all(name.lower().startswith("test") for name in new):
            taken.append(block)
            known |= new
    return "\n".join(taken)


def _defined_names(block: str) -> set[str]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    tree = _parse(block)
    return {node.name for node in tree.body if isinstance(node, kinds)} if tree else set()


def complete_function(prompt: str, answer: str, name: str) -> str:
    r"""Join a prompt (imports, signature and docstring) with an answer (the body, or the complete function).

    If the answer is the complete function, the prompt's imports and helpers come before it.

    Example:
        >>> print(complete_function("import math\ndef area(r):\n", "    return math.pi * r**2\n", "area"))
        import math
        def area(r):
            return math.pi * r**2
        >>> print(complete_function("import math\ndef area(r):\n", "def area(r):\n    return math.pi * r**2\n", "area"))
        import math
        def area(r):
            return math.pi * r**2
    """
    if not defines(answer, name):
        return prompt + answer
    before = prompt[: match.start()] if (match := re.search(rf"^def\s+{re.escape(name)}\b", prompt, re.M)) else ""
    imports = before if before.strip() else "".join(line + "\n" for line in _PREAMBLE.findall(prompt))
    return imports + answer


def add_tests(program: str, tests: str) -> str:
    """Append the tests to a program, and change CRLF line ends to LF."""
    return f"{program}\n\n{tests}\n".replace("\r\n", "\n")
