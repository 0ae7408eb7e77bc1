"""The built documentation, opened from disk: its search works, and it asks nothing of other hosts."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from browser import Browser, open_browser

ROOT = Path(__file__).resolve().parents[2]
SEARCH = """(word => { const input = document.querySelector('.md-search__input'); input.focus(); input.value = word;
input.dispatchEvent(new Event('keyup', {bubbles: true})); })('resume')"""
RESULTS = "[...document.querySelectorAll('.md-search-result__item h1')].map(e => e.textContent).join('|')"


def evaluate(browser: Browser, tab: str, expression: str) -> str:
    return str(browser.call("Runtime.evaluate", tab, expression=expression)["result"].get("value", ""))


@pytest.mark.slow
def test_search_works_from_disk(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, check=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, timeout=250,
    )  # fmt: skip
    page = tmp_path / "site" / "how-to" / "compare.html"
    with open_browser() as browser:
        view = browser.open(page, 1400)
        outside = [a for a in view.requested if not a.startswith(("file://", "data:", "about:", "blob:"))]
        assert not outside
        assert not view.problems
        target = browser.call("Target.createTarget", url=page.as_uri())["targetId"]
        tab = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        found, end = "", time.monotonic() + 60
        while "Resume an interrupted run" not in found and time.monotonic() < end:
            evaluate(browser, tab, SEARCH)
            time.sleep(0.5)
            found = evaluate(browser, tab, RESULTS)
    assert "Resume an interrupted run" in found
