"""Child process that runs one program inside the sandbox. It imports only the standard library.

A program that has its tests in it runs in this process (`main`). The child reads a token, a line of settings and then the
program from standard input, gives up its privileges, sets the limits, runs the program, and reports. The token alone means that
the program ran to its end; every other report means that it failed. A program that exits early (a kill, a crash) prevents the
report, so it does not pass.

Tests that are given apart from the program run in this process, and the program in a second one (`main_with_tests`). The program's
process never has the tests, the token or the pipe of the report, and the kernel keeps it from reading this one.
"""

from __future__ import annotations

import contextlib
import json
import marshal
import os
import resource
import signal
import sys
import types

TYPE_CHECKING = False
if TYPE_CHECKING:
    import io
    from typing import Any

NOBODY = 65534
TOKEN_BYTES = 16
_PR_SET_DUMPABLE = 4


def main() -> None:
    """Run the program from standard input."""
    report = os.dup(1)
    try:
        # While the program runs, the token is only a temporary value of this expression. No variable, frame or container
        # refers to it. If the program raises, the token is dropped with the expression and cannot be read a second time.
        # The functions are also looked up before the program can replace them.
        os.write(report, (os.read(0, TOKEN_BYTES), _run())[0] + b"\n")
    except BaseException as error:  # the program may also raise SystemExit and KeyboardInterrupt
        os.write(report, _describe(error) + b"\n")
        os._exit(1)
    os._exit(0)


def main_with_tests() -> None:
    """Run the tests from standard input, and in a second process the program."""
    report = os.dup(1)
    with open(
        0, "rb", buffering=0, closefd=False
    ) as stdin:  # without a buffer, so that the rest is read after the fork
        settings: dict[str, Any] = json.loads(stdin.readline())
        values, calls = (_module(name, stdin, length) for name, length in settings["modules"].items())
    (from_tests, to_program), (from_program, to_tests) = os.pipe(), os.pipe()
    program_process = os.fork()
    if program_process == 0:
        for pipe in (report, to_program, from_program):
            os.close(pipe)
        _confine(settings, settings["user"])
        calls.ProgramSide(values, from_tests, to_tests, _run_program).serve()
    os.close(from_tests)
    os.close(to_tests)
    try:
        with open(0, "rb", closefd=False) as stdin:
            rest = stdin.read()
        _confine(settings, settings["tests_user"])
        _forbid_inspection(settings["tests_user"])  # the program has not begun: it comes through the pipe
        token, parts = rest[:TOKEN_BYTES], json.loads(rest[TOKEN_BYTES:])
        tests = types.ModuleType("tests")
        sys.modules["tests"] = tests
        code = compile(parts["tests"], "tests.py", "exec")
        side = calls.TestsSide(values, from_program, to_program)
        tests.__dict__.update(side.run(parts["program"], parts["names"]))
        exec(code, tests.__dict__)
        os.write(report, token + b"\n")
    except BaseException as error:
        if isinstance(error, calls.ProgramStopped) and not str(error):
            description = _how_ended(program_process)
        elif isinstance(error, calls.ProgramStopped):
            description = str(error).encode("utf-8", "backslashreplace")
        elif isinstance(error, calls.Unsendable):
            description = f"the tests pass an object that cannot be sent to the program: {error}".encode()
        else:
            description = _describe(error)
        os.write(report, b" ".join(description.split()) + b"\n")
        os._exit(1)
    os._exit(0)


def _module(name: str, stdin: io.RawIOBase, length: int) -> types.ModuleType:
    """Return a module whose compiled code comes from standard input."""
    code = b""
    while len(code) < length:
        code += stdin.read(length - len(code)) or b""
    module = types.ModuleType(name)
    exec(marshal.loads(code), module.__dict__)
    return module


def _forbid_inspection(user: int | None) -> None:
    """Forbid other processes of the same user to read or write the memory and the files of this one, and to interrupt it."""
    if user is not None and os.getuid() == user:
        return  # the program has another user
    import ctypes

    if ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0):
        raise OSError("the tests' process could not be protected")
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's handler would raise an exception inside the tests


def _how_ended(process: int) -> bytes:
    """Describe how the program's process ended."""
    status = os.waitpid(process, 0)[1]
    if os.WIFSIGNALED(status):
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(os.WTERMSIG(status)).name}".encode()
    return b"ended early"


def _run() -> types.ModuleType:
    """Run the program and return its module.

    This function must not catch exceptions of the program, because returning means that the program passed.
    """
    with open(0, "rb", closefd=False) as stdin:
        settings: dict[str, Any] = json.loads(stdin.readline())
        program = stdin.read().decode("utf-8", "surrogatepass")
    _confine(settings, settings["user"])
    return _run_program(program)


def _confine(settings: dict[str, Any], user: int | None) -> None:
    """Close the standard streams, give up privileges and set the limits."""
    sys.path += settings["packages"]
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.close(null)
    for output in (sys.stdout, sys.stderr):
        if output is not None:  # a lone surrogate can be printed, as in the harness of HumanEval
            output.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    if user is not None:
        _change_user(user)
    for name, value in settings["limits"].items():
        limit = getattr(resource, name)
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))


def _run_program(program: str) -> types.ModuleType:
    """Run the program and return its module.

    The program runs in a new module, because dataclasses and pickle look up the module of a class. The module is not
    __main__: code under ``if __name__ == "__main__"`` could wait for input.
    """
    module = types.ModuleType("program")
    sys.modules["program"] = module
    exec(compile(program.removeprefix("\ufeff"), "program.py", "exec"), module.__dict__)
    return module


def _change_user(user: int) -> None:
    """Stop being root. Each program gets its own user id, so that programs do not share one limit of processes."""
    os.setgroups([])
    for number in (user, NOBODY):
        with contextlib.suppress(OSError):  # a container may map only a few user ids
            os.setresgid(number, number, number)
            os.setresuid(number, number, number)
            return
    raise SystemExit("the sandbox could not give up root")


def _describe(error: BaseException) -> bytes:
    """Describe an exception of the program in one line."""
    name = type(error).__name__
    if isinstance(error, MemoryError):
        return b"out of memory"
    try:
        text = " ".join(str(error).split())[:200]
    except BaseException:  # the program also writes the method __str__
        text = ""
    return (f"{name}: {text}" if text else name).encode("utf-8", "backslashreplace")


if __name__ == "__main__":
    main_with_tests() if "tests" in sys.argv[1:] else main()
