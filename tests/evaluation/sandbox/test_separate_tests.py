"""Tests in a process of their own: what they can ask of a program, and that the program cannot forge their verdict."""
# ruff: noqa: E501

from __future__ import annotations

import pytest

from balora import BALoraError
from balora.evaluation.sandbox.sandbox import Limits, Sandbox, UnitTests
from balora.evaluation.scoring import programs


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    try:
        return Sandbox(Limits(seconds=10.0))
    except BALoraError as error:
        pytest.skip(f"no sandbox here: {error}")


def result_of(sandbox: Sandbox, program: str, tests: str) -> str:
    outcome = sandbox.run(program, UnitTests(tests, programs.tested_names(tests)))
    assert outcome.passed == (outcome.result == "passed")
    return outcome.result


# Everything that passes, in one program: starting a process is what takes time.
PROGRAM = """
import collections, dataclasses, decimal, enum, fractions, math
CONSTANT = {"a": (1, 2.5)}
def same(x, **more): return more.get("value", x)
def sort(items): items.sort()
def drop(mapping, key): del mapping[key]
def numbers(n): yield from range(n)
def adder(n): return lambda x: x + n
def apply(function, *values, key=None): return [function(value) for value in values]
def fail(x): raise KeyError("no such")
class Mine(ValueError): pass
def mine(): raise Mine("mine")
class Point:
    def __init__(self, x): self.x = x
    def __eq__(self, other): return self.x == other.x
    def __len__(self): return self.x
    def __getitem__(self, i): return self.x + i
    def twice(self): return Point(2 * self.x)
    def __str__(self): return f"<{self.x}>"
def total(points): return math.fsum(point.x for point in points)
def identity(value): return value
class Color(enum.IntEnum): RED = 3
Pair = collections.namedtuple("Pair", "a b")
def kinds(): return [Color.RED, Pair(1, 2), collections.Counter("aab"), collections.deque([1]), {1, 2}, frozenset({3})]
def rare(): return [2**100, -2**70, 1j, b"x", bytearray(b"y"), range(1, 9, 2), decimal.Decimal("1.10"), fractions.Fraction(1, 3)]
def array():
    import numpy as np
    return np.arange(6.0).reshape(2, 3), np.int64(3), np.float32(0.5), np.bool_(True)
def loop():
    items = []
    items.append(items)
    return items
def sum(a, b): return 7
"""
TESTS = """
import itertools
assert CONSTANT == {"a": (1, 2.5)} and type(CONSTANT["a"]) is tuple
for value in (None, True, 0, -1.5, float("inf"), "\\ud800 text", [1, [2]], {1: {2: "x"}}, {1, 2}, (1, (2,)), int, ..., b"\\0"):
    assert same(value) == value and type(same(value)) is type(value)
    assert same(0, value=value) == value
assert math.isnan(same(float("nan"))) and math.copysign(1, same(-0.0)) == -1
items = [3, 1, 2]
assert sort(items) is None and items == [1, 2, 3]
mapping = {"a": 1, "b": 2}
drop(mapping, key="a")
assert mapping == {"b": 2}
assert list(numbers(3)) == [0, 1, 2] and next(numbers(2)) == 0 and list(itertools.islice(numbers(10**9), 2)) == [0, 1]
assert adder(2)(3) == 5
assert apply(lambda x: x * x, 2, 3) == [4, 9] and apply(len, "ab") == [2] and apply(same, 1) == [1]
def check(candidate):
    try:
        candidate(1)
        assert False
    except KeyError as error:
        assert error.args == ("'no such'",)
check(fail)
try:
    mine()
    assert False
except ValueError as error:
    assert str(error) == "mine" and type(error).__name__ == "Mine"
try:
    apply(lambda x: 1 / x, 0)
    assert False
except ZeroDivisionError:
    pass
point = Point(4)
assert point.x == 4 and point == Point(4) and not point == Point(5) and point != 4 and len(point) == 4 and point[1] == 5
point.x = 6
assert total([point, Point(1)]) == 7 and point.twice().x == 12 and str(point) == "<6>" and identity(point) is point
assert kinds() == [3, (1, 2), {"a": 2, "b": 1}, __import__("collections").deque([1]), {1, 2}, frozenset({3})]
assert rare() == [2**100, -(2**70), 1j, b"x", bytearray(b"y"), range(1, 9, 2), __import__("decimal").Decimal("1.1"), __import__("fractions").Fraction(1, 3)]
grid, *scalars = array()
assert grid.shape == (2, 3) and (grid == [[0, 1, 2], [3, 4, 5]]).all() and scalars == [3, 0.5, True]
assert loop() != [] and loop() is not None
assert sum([1, 2]) == 3, "the program's own sum is not taken for Python's"
"""


def test_tests_use_a_program_as_if_it_were_in_their_process(sandbox: Sandbox) -> None:
    assert result_of(sandbox, PROGRAM, TESTS) == "passed"
    assert result_of(sandbox, PROGRAM, "assert sum(10, 15) == 7") == "passed"  # MBPP's task 126
    unsafe = Sandbox(Limits(seconds=20), unsafe=True)
    assert result_of(unsafe, PROGRAM, TESTS) == "passed"


@pytest.mark.parametrize(
    ("program", "tests", "result"),
    [
        ("def f(x): return x", "assert f(2) == 4, 'no'", "AssertionError: no"),
        ("def f(x): return 1 / 0", "assert f(2) == 4", "ZeroDivisionError: division by zero"),
        ("def (", "assert f(2) == 4", "SyntaxError: invalid syntax (program.py, line 1)"),
        ("x = '''", "assert f(2) == 4", "SyntaxError: unterminated triple-quoted string literal"),
        ("def g(x): return x", "assert f(2) == 4", "NameError: name 'f' is not defined"),
        ("def f(x): return bytearray(10 * 2**30)", "assert f(2) == 4", "out of memory"),
        ("import ctypes\ndef f(x): return ctypes.string_at(0)", "assert f(2) == 4", "killed by SIGSEGV"),
        ("import os\ndef f(x): os._exit(0)", "assert f(2) == 4", "ended early"),
        ("import sys\ndef f(x): sys.exit(0)", "try: f(2)\nexcept: pass\nelse: assert False", "passed"),
        ("def f(x): raise SystemExit('passed')", "f(2)", "SystemExit: passed"),
        ("class passed(Exception): pass\ndef f(x): raise passed", "f(2)", "exception passed"),
        (
            "def f(x): return x",
            "class A: pass\nf(A())",
            "the tests pass an object that cannot be sent to the program: A",
        ),
    ],
)
def test_the_outcome_of_a_program_that_fails(sandbox: Sandbox, program: str, tests: str, result: str) -> None:
    assert result_of(sandbox, program, tests).startswith(result)


TELLS_FAILURE = "assert f(2) == 4 and f(3) == 9"
READ_MEMORY = """
import ctypes, os, re
def areas(process):
    with open(f"/proc/{process}/maps") as maps, open(f"/proc/{process}/mem", "rb") as memory:
        for line in maps:
            found = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw", line)
            if found:
                start, end = (int(part, 16) for part in found.groups())
                try:
                    memory.seek(start)
                    yield memory.read(min(end - start, 50 << 20))
                except OSError:
                    continue
"""
FORGERIES = {
    "an object that is equal to everything": "class E:\n def __eq__(s, o): return True\n def __bool__(s): return True\ndef f(x): return E()",
    "a number that is equal to everything": (
        "class E(int):\n def __eq__(s, o): return True\n __hash__ = int.__hash__\ndef f(x): return E(7)"
    ),
    "a list that is equal to everything": "class E(list):\n def __eq__(s, o): return True\ndef f(x): return E([1])",
    "builtins of the tests": (
        "import builtins, sys\nbuiltins.AssertionError = type('E', (BaseException,), {})\nall = any = len = lambda *_: 1\n"
        "class E:\n def __getattr__(s, n): return lambda *_: True\nmath = E()\nsys.modules['math'] = math\ndef f(x): return 0"
    ),
    "the tests are read, and answered": READ_MEMORY
    + """
def f(x):
    for area in areas("self"):
        found = re.search(rb"f\\(%d\\) == (\\d+)" % x, area)
        if found and b"re.search" not in area[max(0, found.start() - 40):found.start()]: return int(found[1])
""",
    "the token is read in the other process": READ_MEMORY
    + """
def f(x):
    for area in areas(os.getppid()):
        for token in set(re.findall(rb"[0-9a-f]{16}", area)):
            for fd in range(99):
                try: os.write(fd, token + b"\\n")
                except OSError: pass
    return 0
""",
    "the report of the other process": (
        "import os\ndef f(x):\n for fd in range(20):\n  try: open(f'/proc/{os.getppid()}/fd/{fd}', 'wb').write(b'x\\n')\n"
        "  except OSError: pass\n return 0"
    ),
    "the other process is interrupted or ended": (
        "import os, signal\ndef f(x):\n for name in ('SIGINT', 'SIGTERM', 'SIGUSR1', 'SIGKILL'):\n"
        "  try: os.kill(os.getppid(), getattr(signal, name))\n  except OSError: pass\n return 0"
    ),
    "answers written into the pipe": (
        "import os\ndef f(x):\n for fd in range(20):\n  for line in (b'[\"=\",', b'\\xff\\n', b'[]\\n', b'{\"o\": -1}\\n', b'[\"call\",0,[],{}]\\n'):\n"
        "   try: os.write(fd, line)\n   except OSError: pass\n return 0"
    ),
    "a deep answer": "import os\ndef f(x):\n for fd in range(3, 20):\n  try: os.write(fd, b'[' * 100000 + b'\\n')\n  except OSError: pass\n return 0",
    "an endless answer": (
        "import os\ndef f(x):\n for fd in range(3, 20):\n  try:\n   while True: os.write(fd, b'9' * 65536)\n  except OSError: pass\n return 0"
    ),
    "a module that is not one": "import types\nf = types.ModuleType('os')",
    "a name of Python's": "import os\nf = os",
    "the tests' own names": "def check(*_): pass\n__name__ = 'tests'\nf = check",
    "a fork that goes on": "import os\nif os.fork(): os._exit(0)\ndef f(x): return 0",
}  # fmt: skip


@pytest.mark.parametrize("name", FORGERIES)
def test_a_program_cannot_forge_a_pass(sandbox: Sandbox, name: str) -> None:
    result = result_of(sandbox, FORGERIES[name], TELLS_FAILURE)
    assert result not in ("passed", "timed out")
    result.encode()


def test_the_program_sees_neither_the_tests_nor_the_token(sandbox: Sandbox) -> None:
    program = (
        "import os\ndef f(x): return (os.readlink('/proc/self/fd/0'), sorted(map(int, os.listdir('/proc/self/fd'))))"
    )
    tests = "null, files = f(0)\nassert null == '/dev/null' and len(files) == 6, files"  # 0 to 2, the two pipes, and the listing
    assert result_of(sandbox, program, tests) == "passed"
