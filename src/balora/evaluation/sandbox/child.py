"""Child process that runs one program inside the sandbox. It can import only the standard library.

It reads a line of settings and then the program from standard input, gives up its privileges, sets the limits, runs the
program, and reports the outcome. A program that exits early (a kill, a crash) prevents the report, so it does not pass.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import types
from typing import Any

NOBODY = 65534


def main() -> None:
    """Run the program from standard input."""
    settings: dict[str, Any] = json.loads(sys.stdin.readline())
    program = sys.stdin.read()
    report = os.dup(1)
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
    outcome = _run(program)
    os.write(report, json.dumps({"token": settings["token"], "outcome": outcome}).encode() + b"\n")
    os._exit(0)


def _change_user(user: int) -> None:
    """Stop being root. Each program gets its own user id, so that programs do not share one limit of processes."""
    os.setgroups([])
    for number in (user, NOBODY):
        with contextlib.suppress(OSError):  # a container may map only a few user ids
            os.setresgid(number, number, number)
            os.setresuid(number, number, number)
            return
    raise SystemExit("the sandbox could not give up root")


def _run(program: str) -> str:
    # The program runs in a new module, because dataclasses and pickle look up the module of a class. The module is not
    # __main__: code under `if __name__ == "__main__"` could wait for input.
    module = types.ModuleType("program")
    sys.modules["program"] = module
    try:
        exec(compile(program, "program.py", "exec"), module.__dict__)
    except MemoryError:
        return "out of memory"
    except BaseException as error:  # the program may also raise SystemExit and KeyboardInterrupt
        module.__dict__.clear()
        text = " ".join(str(error).split())[:200]
        return f"{type(error).__name__}: {text}" if text else type(error).__name__
    return "passed"


if __name__ == "__main__":
    main()
