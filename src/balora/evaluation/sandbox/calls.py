"""Calls between the process of the tests and the process of a program. It imports only the standard library.

The tests hold a `Remote` for each object of the program that is not sent by value: its functions, classes, instances and
generators. An operation on it is carried out in the program's process, and the result is sent back. Meanwhile the program can
call the functions that the tests gave it.
"""

from __future__ import annotations

import _operator as operator  # operator itself takes a millisecond, and each program starts an interpreter
import builtins
import json
import os
import sys
import types

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

LARGEST = 16 << 20
"""Bytes of one message."""
UNREADABLE = "the program sent what is no answer to its tests"


class ProgramStopped(BaseException):
    """The program's process has ended (no text), or answers in a wrong way. Tests that catch exceptions do not catch it."""


class Unsendable(BaseException):
    """The tests pass the program an object that cannot be sent."""


class Connection:
    """One end of the two pipes between the processes.

    Args:
        values: The module `values`.
        receive: File descriptor to read from.
        send: File descriptor to write to.
    """

    def __init__(self, values: Any, receive: int, send: int) -> None:
        self.values = values
        self._receive = open(receive, "rb")  # noqa: SIM115 - open until the process ends
        self._send = send
        self.own: list[Any] = []
        """Objects of this side that the other side knows by their index."""
        self._numbers: dict[int, int] = {}

    def ask(self, operation: str, *parts: Any) -> Any:
        """Send a request and wait for its answer. Requests of the other side are answered meanwhile."""
        self._write([operation, *parts])
        while True:
            message = self._read()
            if message[0] in ("=", "!"):
                return message
            self._write(self.answer(message))

    def serve(self) -> None:
        """Answer requests until the other side ends."""
        while True:
            self._write(self.answer(self._read()))

    def answer(self, message: Any) -> Any:
        """Carry out a request of the other side, and return the answer to send."""
        raise NotImplementedError

    def number(self, value: Any) -> dict[str, int]:
        """Return the number of an object of this side."""
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self.own)
            self.own.append(value)
        return {"o": self._numbers[id(value)]}

    def _write(self, message: Any) -> None:
        rest = memoryview(self.values.write(message))
        try:
            while rest:
                rest = rest[os.write(self._send, rest) :]
        except OSError as error:
            raise ProgramStopped from error

    def _read(self) -> Any:
        line = self._receive.readline(LARGEST)
        if not line:
            raise ProgramStopped
        try:
            message = json.loads(line)
            if line.endswith(b"\n") and isinstance(message[0], str):
                return message
        except (ValueError, TypeError, LookupError, RecursionError):
            pass
        raise ProgramStopped(UNREADABLE)


class ProgramSide(Connection):
    """The program's end: carries out the operations of the tests."""

    def __init__(self, values: Any, receive: int, send: int, run: Callable[[str], types.ModuleType]) -> None:
        super().__init__(values, receive, send)
        self._run = run

    def answer(self, message: Any) -> Any:
        """Carry out an operation. The answer is ``=`` with the result and the changed arguments, or ``!`` with the exception."""
        try:
            operation, *parts = message
            return getattr(self, f"_answer_{operation}")(*parts)
        except ProgramStopped:
            os._exit(0)
        except BaseException as error:  # a program may also raise SystemExit
            names = [kind.__name__ for kind in type(error).__mro__]
            try:
                text = str(error)[:1000]
            except BaseException:  # the program also writes the method __str__
                text = ""
            return ["!", names, text]

    def _answer_run(self, program: str, names: Sequence[str]) -> Any:
        """Run the program. Return the values of global names, and the names of the modules among them."""
        defined = self._run(program).__dict__
        found = {name: defined[name] for name in names if name in defined}
        modules = {name: value.__name__ for name, value in found.items() if type(value) is types.ModuleType}
        return ["=", {name: self._encode(value) for name, value in found.items() if name not in modules}, modules]

    def _answer_do(self, name: str, target: Any, arguments: Any, keywords: Any) -> Any:
        values = [self._decode(argument) for argument in arguments]
        named = {key: self._decode(argument) for key, argument in keywords.items()}
        result = self._encode(_OPERATIONS[name](self._decode(target), *values, **named))
        changed = {
            str(place): now for place, value in enumerate(values) if (now := self._encode(value)) != arguments[place]
        }
        changed |= {key: now for key, value in named.items() if (now := self._encode(value)) != keywords[key]}
        return ["=", result, changed]

    def _encode(self, value: Any) -> Any:
        def refer(other: Any) -> Any:
            return other._form if type(other) is _Callback else self.number(other)

        try:
            return self.values.encode(value, refer)
        except RecursionError:  # a list that contains itself
            return self.number(value)

    def _decode(self, form: Any) -> Any:
        def find(tag: str, number: int) -> Any:
            return self.own[number] if tag == "h" else _Callback(self, number)

        return self.values.decode(form, find)

    def call_back(self, number: int, arguments: Sequence[Any], keywords: dict[str, Any]) -> Any:
        """Call a function of the tests."""
        named = {key: self._encode(value) for key, value in keywords.items()}
        kind, result, *rest = self.ask("call", number, [self._encode(value) for value in arguments], named)
        if kind == "!":
            raise _exception(result, rest[0])
        return self._decode(result)


class _Callback:
    """Function of the tests, in the program's process."""

    def __init__(self, side: ProgramSide, number: int) -> None:
        self._side = side
        self._number = number
        self._form = {"h": number}

    def __call__(self, /, *arguments: Any, **keywords: Any) -> Any:
        return self._side.call_back(self._number, arguments, keywords)


class TestsSide(Connection):
    """The tests' end: asks the program for its objects and operations on them."""

    def __init__(self, values: Any, receive: int, send: int) -> None:
        super().__init__(values, receive, send)
        self._remotes: dict[int, Remote] = {}

    def run(self, program: str, names: Sequence[str]) -> dict[str, Any]:
        """Run a program, and return those of the names that it defines at its outermost level. A module is imported here.

        An exception of the program is raised here too.
        """
        found, modules = self._ask("run", program, list(names))
        return {
            **{name: self.decode(form) for name, form in found.items() if name in names},
            **{
                name: __import__("importlib").import_module(module)
                for name, module in modules.items()
                if _is_known(module)
            },
        }

    def do(self, operation: str, target: Remote, /, *arguments: Any, **keywords: Any) -> Any:
        """Carry out an operation on an object of the program. Lists and dicts that it changes are changed here too."""
        sent = [self._encode(value) for value in arguments]
        named = {key: self._encode(value) for key, value in keywords.items()}
        result, changed = self._ask("do", operation, {"h": target._balora_number}, sent, named)
        for place, form in changed.items():
            given = keywords[place] if place in keywords else arguments[int(place)]
            _change(given, self.decode(form))
        return self.decode(result)

    def answer(self, message: Any) -> Any:
        """Call a function that the tests gave to the program."""
        try:
            operation, number, arguments, keywords = message
            if operation != "call" or type(number) is not int or not 0 <= number < len(self.own):
                raise ProgramStopped(UNREADABLE)
            function = self.own[number]
            values = [self.decode(form) for form in arguments]
            return ["=", self._encode(function(*values, **{key: self.decode(form) for key, form in keywords.items()}))]
        except Exception as error:
            return ["!", [kind.__name__ for kind in type(error).__mro__], str(error)[:1000]]

    def decode(self, form: Any) -> Any:
        """Return a value that the program sent."""

        def find(tag: str, number: Any) -> Any:
            if type(number) is not int or not 0 <= number < (len(self.own) if tag == "h" else sys.maxsize):
                raise ProgramStopped(UNREADABLE)
            return self.own[number] if tag == "h" else self._remotes.setdefault(number, Remote(self, number))

        return self.values.decode(form, find)

    def _ask(self, operation: str, *parts: Any) -> Any:
        kind, *answer = self.ask(operation, *parts)
        try:
            first, second = answer
            if kind == "!":
                error = _exception(first, second)
        except Exception as wrong:
            raise ProgramStopped(UNREADABLE) from wrong
        if kind == "!":
            raise error
        return first, second

    def _encode(self, value: Any) -> Any:
        return self.values.encode(value, self._refer)

    def _refer(self, value: Any) -> Any:
        if type(value) is Remote:
            return {"h": value._balora_number}
        if isinstance(value, types.FunctionType | types.BuiltinFunctionType | types.MethodDescriptorType):
            return self.number(value)
        raise Unsendable(type(value).__name__)


class Remote:
    """Object of the program, in the tests' process. It is equal to no value, and to another object if the program says so."""

    __slots__ = ("_balora_number", "_balora_side")

    def __init__(self, side: TestsSide, number: int) -> None:
        object.__setattr__(self, "_balora_side", side)
        object.__setattr__(self, "_balora_number", number)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._balora_side.do("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._balora_side.do("setattr", self, name, value)

    def __call__(self, /, *arguments: Any, **keywords: Any) -> Any:
        """Call the object in the program's process."""
        return self._balora_side.do("call", self, *arguments, **keywords)

    def __eq__(self, other: object) -> bool:
        return self is other or (type(other) is Remote and self._balora_side.do("eq", self, other) is True)

    def __hash__(self) -> int:
        return hash(self._balora_number)

    def __bool__(self) -> bool:
        return self._balora_side.do("bool", self) is True

    def __len__(self) -> int:
        return self._balora_side.do("len", self)  # type: ignore[no-any-return]

    def __getitem__(self, key: Any) -> Any:
        return self._balora_side.do("getitem", self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._balora_side.do("setitem", self, key, value)

    def __contains__(self, value: Any) -> bool:
        return self._balora_side.do("contains", self, value) is True

    def __iter__(self) -> Iterator[Any]:
        iterator = self._balora_side.do("iter", self)
        while True:
            found = self._balora_side.do("next", iterator)
            if not found:
                return
            yield found[0]

    def __next__(self) -> Any:
        found = self._balora_side.do("next", self)
        if not found:
            raise StopIteration
        return found[0]

    def __str__(self) -> str:
        return str(self._balora_side.do("str", self))

    def __repr__(self) -> str:
        return str(self._balora_side.do("repr", self))


def _next(iterator: Any) -> list[Any]:
    """Return the next value in a list; the empty list at the end."""
    try:
        return [next(iterator)]
    except StopIteration:
        return []


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda function, /, *arguments, **keywords: function(*arguments, **keywords),
    "getattr": getattr,
    "setattr": setattr,
    "eq": operator.eq,
    "bool": bool,
    "len": len,
    "iter": iter,
    "next": _next,
    "getitem": operator.getitem,
    "setitem": operator.setitem,
    "contains": operator.contains,
    "str": str,
    "repr": repr,
}


def _change(given: Any, now: Any) -> None:
    """Give an argument of the tests the content that the program has given its copy."""
    if type(given) is not type(now):
        return
    if isinstance(given, list | bytearray):
        given[:] = now
    elif isinstance(given, dict | set):
        given.clear()
        given.update(now)


def _exception(names: Sequence[str], text: str) -> BaseException:
    """Return an exception like that of the other side: of the first class in its order that is Python's own."""
    for name in names:
        kind = getattr(builtins, name, None)
        if isinstance(kind, type) and issubclass(kind, Exception):
            own = names[0] if names[0].isidentifier() else name
            try:
                return (kind if own == name else type(own, (kind,), {}))(text)
            except TypeError:  # UnicodeDecodeError has five arguments
                return Exception(f"{own}: {text}")
    return ProgramStopped(f"{names[0]}: {text}" if text else names[0])


def _is_known(module: Any) -> bool:
    return isinstance(module, str) and module.partition(".")[0] in {*sys.stdlib_module_names, "numpy"}
