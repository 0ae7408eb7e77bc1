"""The program that runs a program, inside the sandbox. Standard library alone: nothing else is there.

It reads one line of settings and then the program from its standard input, gives up its rights, sets the limits, runs the
program to its end, and reports. A program that leaves early (`sys.exit(0)`, a kill, a crash) never gets to the report,
so it cannot be taken for one that ran to its end.
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
    """Run the program that stands on the standard input."""
    settings: dict[str, Any] = json.loads(sys.stdin.readline())
    program = sys.stdin.read()
    report = os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    if settings["user"] is not None:
        _become(settings["user"])
    for name, value in settings["limits"].items():
        limit = getattr(resource, name)
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))
    outcome = _run(program)
    os.write(report, json.dumps({"token": settings["token"], "outcome": outcome}).encode() + b"\n")
    os._exit(0)


def _become(user: int) -> None:
    """Stop being root. A user of its own for every program, so that they do not share a limit of processes."""
    os.setgroups([])
    for number in (user, NOBODY):
        with contextlib.suppress(OSError):  # a container may know few numbers
            os.setresgid(number, number, number)
            os.setresuid(number, number, number)
            return
    raise SystemExit("the sandbox could not give up root")


def _run(program: str) -> str:
    # A module of its own: dataclasses and pickle look their classes' module up. It is not __main__, so that what stands
    # under `if __name__ == "__main__"` does not wait for input.
    module = types.ModuleType("program")
    sys.modules["program"] = module
    try:
        exec(compile(program, "program.py", "exec"), module.__dict__)
    except MemoryError:
        return "out of memory"
    except BaseException as error:  # SystemExit and KeyboardInterrupt are the program's own, too
        module.__dict__.clear()
        text = " ".join(str(error).split())[:200]
        return f"{type(error).__name__}: {text}" if text else type(error).__name__
    return "passed"


if __name__ == "__main__":
    main()
