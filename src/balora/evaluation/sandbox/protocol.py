"""The conversation with a program in the sandbox: it is handed over, its report is awaited, and not for ever."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import time

_MOST_OUTPUT = 64 * 1024
"""Bytes; a report is some hundred."""


def talk(process: subprocess.Popen[bytes], sent: bytes, deadline: float) -> tuple[bytes, str | None]:
    """Hand the program over and wait for the report, its end, too much of anything, or the deadline.

    Returns:
        What came back, and why no more was waited for.
    """
    assert process.stdin is not None and process.stdout is not None
    reply, rest = b"", memoryview(sent)
    os.set_blocking(process.stdin.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdin, selectors.EVENT_WRITE)
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            left = deadline - time.monotonic()
            ready = selector.select(max(0.0, left))
            if not ready and left <= 0:
                return reply, "timed out"
            for key, _ in ready:
                if key.fileobj is process.stdin:
                    rest = _push(process, rest)
                    if not rest:
                        selector.unregister(process.stdin)
                        process.stdin.close()
                    continue
                part = os.read(process.stdout.fileno(), _MOST_OUTPUT)
                reply += part
                if not part or reply.endswith(b"}\n"):
                    if not part:
                        process.wait()
                    return reply, None
                if len(reply) > _MOST_OUTPUT:
                    return reply, "wrote without end"


def _push(process: subprocess.Popen[bytes], rest: memoryview) -> memoryview:
    assert process.stdin is not None
    try:
        return rest[os.write(process.stdin.fileno(), rest[:_MOST_OUTPUT]) :]
    except BlockingIOError:
        return rest
    except BrokenPipeError:
        return rest[len(rest) :]


def outcome_in(reply: bytes, token: str) -> str | None:
    """The report, if it is the child's: the program does not know the token."""
    for line in reply.splitlines():
        with contextlib.suppress(ValueError, TypeError, KeyError, UnicodeDecodeError):
            report = json.loads(line)
            if report["token"] == token:
                return str(report["outcome"])
    return None


def how_it_ended(status: int) -> str:
    """What a status says of a program that did not report."""
    number = -status if status < 0 else status - 128
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(number).name}"
    return "ended early"


__all__ = ["how_it_ended", "outcome_in", "talk"]
