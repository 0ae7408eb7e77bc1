"""Protocol between the sandbox and its child process: send the program, and wait for the report with a time limit."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import time

_MAX_OUTPUT = 64 * 1024
"""Bytes. A report has a few hundred."""


def exchange(process: subprocess.Popen[bytes], message: bytes, deadline: float) -> tuple[bytes, str | None]:
    """Send a message and wait for the reply, until the process ends, writes too much, or reaches the deadline.

    Args:
        process: Process with pipes for standard input and output.
        message: Settings and program.
        deadline: Latest time, on the clock of `time.monotonic`.

    Returns:
        The reply, and the reason if the wait was cut short.
    """
    assert process.stdin is not None and process.stdout is not None
    reply, rest = b"", memoryview(message)
    os.set_blocking(process.stdin.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdin, selectors.EVENT_WRITE)
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            remaining = deadline - time.monotonic()
            ready = selector.select(max(0.0, remaining))
            if not ready and remaining <= 0:
                return reply, "timed out"
            for key, _ in ready:
                if key.fileobj is process.stdin:
                    rest = _send(process, rest)
                    if not rest:
                        selector.unregister(process.stdin)
                        process.stdin.close()
                    continue
                part = os.read(process.stdout.fileno(), _MAX_OUTPUT)
                reply += part
                if not part:
                    process.wait()
                if not part or reply.endswith(b"}\n"):
                    return reply, None
                if len(reply) > _MAX_OUTPUT:
                    return reply, "wrote without end"


def _send(process: subprocess.Popen[bytes], rest: memoryview) -> memoryview:
    """Write as much as the pipe takes, and return the rest."""
    assert process.stdin is not None
    try:
        return rest[os.write(process.stdin.fileno(), rest[:_MAX_OUTPUT]) :]
    except BlockingIOError:
        return rest
    except BrokenPipeError:
        return rest[len(rest) :]


def parse_outcome(reply: bytes, token: str) -> str | None:
    """Return the outcome that the child process reports. The token, which the program does not know, proves the sender."""
    for line in reply.splitlines():
        with contextlib.suppress(ValueError, TypeError, KeyError, UnicodeDecodeError):
            report = json.loads(line)
            if report["token"] == token:
                return str(report["outcome"])
    return None


def describe_exit_status(status: int) -> str:
    """Describe how a process ended that did not report."""
    number = -status if status < 0 else status - 128
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(number).name}"
    return "ended early"
