r"""Turn a model's answer, a completion or a reply with code blocks, into a program that can be run."""

import ast
import builtins
import re
import textwrap
import warnings

_PYTHON = ("", "python", "python3", "py", "py3")
_CODE_LINE = re.compile(r"^(?:from|import|def|class|async def|@)\b|^@|^[A-Za-z_]\w* = ", re.MULTILINE)
_PREAMBLE = re.compile(r"^(?:from|import)\s.*$", re.MULTILINE)
_FENCE = re.compile(r"^([^`~]*)(`{3,}|~{3,})([^`]*)$")
_THOUGHTS = re.compile(r"</think(?:ing)?>", re.IGNORECASE)
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_STATEMENTS = (
    *(*_DEFINITIONS, ast.Import, ast.ImportFrom, ast.Assign, ast.AugAssign, ast.Assert),
    *(ast.If, ast.For, ast.While, ast.Try, ast.With),
)


def defines(code: str, name: str) -> bool:
    r"""Return True if code defines a function or class of this name at its outermost level.

    Example:
        >>> defines("def add(a, b):\n    return a + b\n", "add"), defines("    return a + b\n", "add")
        (True, False)
    """
    return re.search(rf"^(?:async\s+def|def|class)\s+{re.escape(name)}\b", code, re.MULTILINE) is not None


def extract_code(reply: str, *names: str) -> str:
    r"""Return the code in a reply.

    It is the last complete block that defines one of the names, together with what it needs of other blocks: a draft gives way to
    its correction. Without code blocks, the runs of lines that are Python take their place. Thoughts before ``</think>`` are left
    out. Without names, the last block that defines anything is taken.

    Example:
        >>> extract_code("Sure!\n```python\ndef one():\n    return 1\n```\nThis returns 1.")
        'def one():\n    return 1\n'
        >>> extract_code("Here it is:\ndef one():\n    return 1\n\nIt returns 1.", "one")
        'def one():\n    return 1\n'
    """
    reply = _THOUGHTS.split(reply)[-1]
    # Some replies close a block at the end of a line of code, or write a sentence after the closing fence.
    found = [_fenced_blocks(reply, strict) for strict in (True, False)]
    for fenced in found:
        blocks = [block for tag, block in fenced if tag in _PYTHON and _parse(block)]
        if (chosen := _last_definition(blocks, names)) is not None:
            return _add_helpers(chosen, blocks)
    if found[0]:
        blocks = [block for tag, block in found[0] if tag in _PYTHON and _parse(block)] or [b for _, b in found[0]]
        return _add_helpers(blocks[0], blocks)
    if reply.startswith((" ", "\t")):
        return reply
    blocks = _code_lines(reply)
    if (chosen := _last_definition(blocks, names)) is not None:
        return _add_helpers(chosen, blocks)
    start = _CODE_LINE.search(reply)
    return reply[start.start() :] if start else reply


def _fenced_blocks(reply: str, strict: bool) -> list[tuple[str, str]]:
    """Return the tag and the text of each code block. If ``strict``, only a line of its own closes a block."""
    lines, blocks, index = reply.splitlines(keepends=True), [], 0
    while index < len(lines):
        opening = _FENCE.match(lines[index].rstrip())
        index += 1
        if opening is None:
            continue
        before, fence, info = opening.groups()
        code = ""
        while index < len(lines):
            line = lines[index]
            index += 1
            end = line.find(fence)
            if end >= 0 and (not strict or not line.strip().strip(fence[0])):
                code += "" if strict else line[:end]
                break
            code += line
        blocks.append(((info.split() or [""])[0].lower(), _unindent(code) if before else code))
    return blocks


def _last_definition(blocks: list[str], names: tuple[str, ...]) -> str | None:
    """Return the last block that defines one of the names, if possible one whose definition has a body."""
    wanted = set(names) or set().union(*map(_defined_names, blocks))
    defining = [block for block in blocks if _defined_names(block) & wanted]
    complete = [block for block in defining if any(not _is_stub(node) for node in _nodes(block, wanted))]
    found = complete or defining
    return found[-1] if found else None


def _code_lines(reply: str) -> list[str]:
    """Return the runs of lines that are Python, in a reply without code blocks."""
    lines, blocks, index = reply.split("\n"), [], 0
    while index < len(lines):
        length = _python_prefix(lines[index:]) if _CODE_LINE.match(lines[index]) else 0
        if length:
            blocks.append("\n".join(lines[index : index + length]))
        index += max(length, 1)
    return blocks


def _python_prefix(lines: list[str]) -> int:
    """Return the number of lines up to the first that is no Python, or is a sentence that could be Python ("Done")."""
    length = len(lines)
    while length > 0:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse("\n".join(lines[:length]))
        except SyntaxError as error:
            length = min(length - 1, (error.lineno or length) - 1)
        except (ValueError, RecursionError, MemoryError):
            return 0
        else:
            for node in tree.body:
                is_call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call | ast.Constant)
                if not is_call and not isinstance(node, _STATEMENTS):
                    return node.lineno - 1
            return length
    return 0


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
    """Put the imports and definitions of other blocks before the chosen block that use them; the last definition counts."""
    known = {name for node in (_parse(chosen) or ast.Module([], [])).body for name in _bound(node)}
    helpers: list[str] = []
    searched = -1
    while searched != len(helpers):
        searched = len(helpers)
        trees = [_parse(code) or ast.Module([], []) for code in (chosen, *helpers)]
        used = {node.id for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Name)}
        for block in reversed(blocks):
            for node in _nodes(block, {*used, "*"} - known) if block != chosen else []:
                helpers.insert(0, _source(block, node))
                known |= _bound(node)
    return "\n".join([*helpers, chosen])


def _nodes(block: str, names: set[str]) -> list[ast.stmt]:
    """Return the statements of a block that bind one of the names."""
    tree = _parse(block)
    return [node for node in tree.body if _bound(node) & names] if tree else []


def _bound(node: ast.stmt) -> set[str]:
    if isinstance(node, _DEFINITIONS):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    targets = node.targets if isinstance(node, ast.Assign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _is_stub(node: ast.stmt) -> bool:
    """Return True for a function or class without a body: only a docstring, ``pass`` or ``...``."""
    return isinstance(node, _DEFINITIONS) and all(
        isinstance(part, ast.Pass) or (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))
        for part in node.body
    )


def _source(block: str, node: ast.stmt) -> str:
    """Return the lines of a statement with its decorators."""
    first = min([node.lineno, *(item.lineno for item in getattr(node, "decorator_list", []))])
    return "\n".join(textwrap.dedent(block).split("\n")[first - 1 : node.end_lineno]) + "\n"


def _defined_names(block: str) -> set[str]:
    """Return the functions, classes and lambdas that a block defines at its outermost level."""
    tree = _parse(block)
    nodes = tree.body if tree else []
    names = {node.name for node in nodes if isinstance(node, _DEFINITIONS)}
    lambdas = [node for node in nodes if isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda)]
    return names.union(*map(_bound, lambdas))


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


def called_names(tests: str) -> list[str]:
    """Return the names of the functions that tests call, builtins left out.

    Example:
        >>> called_names("assert sorted(add(1, 2)) == 3")
        ['add']
    """
    nodes = ast.walk(_parse(tests) or ast.Module([], []))
    called = {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    return sorted(called - set(dir(builtins)))


def tested_names(tests: str) -> tuple[str, ...]:
    """Return the names that tests use and do not define: those that the program may define.

    A builtin is one of them only if the tests call nothing else, so that a program cannot replace ``len`` or ``all``. Modules of
    the standard library are left out if the tests only read their attributes.

    Example:
        >>> tested_names("assert sorted(add(1, 2)) == [3]"), tested_names("assert sum(1, 2) == 3")
        (('add',), ('sum',))
    """
    tree = _parse(tests) or ast.Module([], [])
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    own = {name for node in tree.body for name in _bound(node)}
    names = used - own - set(dir(builtins))
    return tuple(sorted(names)) if called_names(tests) else tuple(sorted(used - own))
