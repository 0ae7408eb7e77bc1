"""Open a page in headless Chromium over the pipe of the DevTools protocol; record its requests and its errors."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-dev-shm-usage", "--disable-extensions", "--remote-debugging-pipe",
)  # fmt: skip
_TIMEOUT = 60.0
# Chromium reads from file descriptor 3 and writes to 4. The program moves the pipes there and becomes the browser. It moves them
# by way of numbers above 10, because one pipe may have the other's target number.
_START = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
for target, end in zip((3, 4), ends):
    os.dup2(end, target)
    os.close(end)
os.execv(sys.argv[3], sys.argv[3:])
"""


@dataclasses.dataclass(frozen=True)
class View:
    """State of a loaded page."""

    requested: list[str]
    """Requested URLs, the page itself first."""
    problems: list[str]
    """Errors and warnings of the console and of the browser's log, and uncaught exceptions."""
    scroll_width: int
    """Width of the document; above the window's width it scrolls horizontally."""
    background: str
    text: str


class Browser:
    """Chromium process."""

    def __init__(self, program: str, home: Path) -> None:
        read_end, self._write = os.pipe()
        self._read, write_end = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, str(read_end), str(write_end), program, *_FLAGS, f"--user-data-dir={home}"],
            pass_fds=(read_end, write_end), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        os.close(read_end)
        os.close(write_end)
        self._numbers = itertools.count(1)
        self._rest = b""
        self.events: list[dict[str, Any]] = []

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # the process group of the browser alone
        self._process.wait()
        os.close(self._write)
        os.close(self._read)

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters, **({"sessionId": session} if session else {})}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        for answer in self._messages():
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)
        raise AssertionError("unreachable")

    def wait_for(self, method: str) -> None:
        if not any(event.get("method") == method for event in self.events):
            for event in self._messages():
                self.events.append(event)
                if event.get("method") == method:
                    return

    def open(self, page: Path, width: int, *, dark: bool = False, screenshot: Path | None = None) -> View:
        """Load a page in a window of the given width."""
        self.events.clear()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        tab = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable", tab)
        self.call("Emulation.setDeviceMetricsOverride", tab, width=width, height=900, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", tab, features=[scheme])
        self.events.clear()
        self.call("Page.navigate", tab, url=page.resolve().as_uri())
        self.wait_for("Page.loadEventFired")
        values = self.call(
            "Runtime.evaluate", tab, returnByValue=True,
            expression="(s => [document.documentElement.scrollWidth, s.backgroundColor, s.color])(getComputedStyle(document.body))",
        )["result"]["value"]  # fmt: skip
        if screenshot is not None:
            shot = self.call("Page.captureScreenshot", tab, captureBeyondViewport=True, format="png")
            screenshot.write_bytes(base64.b64decode(shot["data"]))
        self.call("Target.closeTarget", targetId=target)
        return View(self._requested(), self._problems(), *values)

    def _requested(self) -> list[str]:
        sent = [event for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in sent]

    def _problems(self) -> list[str]:
        found = []
        for event in self.events:
            method, values = event.get("method"), event.get("params", {})
            if method == "Runtime.exceptionThrown":
                found.append(values["exceptionDetails"]["text"])
            elif method == "Runtime.consoleAPICalled" and values["type"] in ("error", "warning"):
                found.append(str(values["args"]))
            elif method == "Log.entryAdded" and values["entry"]["level"] in ("error", "warning"):
                found.append(values["entry"]["text"])
        return found

    def _messages(self) -> Iterator[dict[str, Any]]:
        end = time.monotonic() + _TIMEOUT
        while True:
            while b"\0" in self._rest:
                message, _, self._rest = self._rest.partition(b"\0")
                yield json.loads(message)
            ready, _, _ = select.select([self._read], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise TimeoutError(f"Chromium did not answer within {_TIMEOUT:.0f} s")
            piece = os.read(self._read, 1 << 16)
            if not piece:
                raise ConnectionError("Chromium ended")
            self._rest += piece


@contextlib.contextmanager
def open_browser() -> Iterator[Browser]:
    """Start Chromium; skip the test if it is not installed."""
    program = next((found for name in _NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        browser = Browser(program, Path(home))
        try:
            yield browser
        finally:
            browser.close()
