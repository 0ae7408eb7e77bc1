"""Child process that runs one program inside the sandbox. It imports only the standard library.

It reads a token, a line of settings and then the program from standard input, gives up its privileges, sets the limits, runs
the program, and reports. The token alone means that the program ran to its end; every other report means that it failed. A
program that exits early (a kill, a crash) prevents the report, so it does not pass.
"""

import contextlib
import json
import os
import resource
import sys
import types
from typing import Any

NOBODY = 65534
TOKEN_BYTES = 16


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


def _run() -> types.ModuleType:
    """Run the program and return its module.

    This function must not catch exceptions of the program, because returning means that the program passed.
    """
    with open(0, "rb", closefd=False) as stdin:
        settings: dict[str, Any] = json.loads(stdin.readline())
        program = stdin.read().decode("utf-8", "surrogatepass")
    sys.path += settings["packages"]
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    if settings["user"] is not None:
        _change_user(settings["user"])
    for name, value in settings["limits"].items():
        limit = getattr(resource, name)
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))
    # The program runs in a new module, because dataclasses and pickle look up the module of a class. The module is not
    # __main__: code under `if __name__ == "__main__"` could wait for input.
    module = types.ModuleType("program")
    sys.modules["program"] = module
    exec(compile(program, "program.py", "exec"), module.__dict__)
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
    main()
