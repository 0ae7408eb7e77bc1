"""A client for the judge: one question, one answer, through any OpenAI-compatible endpoint.

What may pass (time-outs, lost connections, 429, 5xx, bodies that are no answer) is tried again after a pause that grows, or
that the server asks for. What will not pass (a wrong key, an unknown model) is said at once. The key is read from the
environment when it is used, and written nowhere.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from balora.errors import BALoraError
from balora.evaluation.options import JudgeOptions

_LONGEST_PAUSE = 60.0
_PASSING = {408, 409, 425, 429}


class JudgeUnavailable(Exception):
    """The endpoint gave no answer, however often it was asked."""


class Judge:
    """Asks.

    Args:
        options: Which endpoint and model, and how patiently.

    Raises:
        BALoraError: The base URL is none.
    """

    def __init__(self, options: JudgeOptions) -> None:
        if not options.base_url.startswith(("http://", "https://")):
            raise BALoraError(f"The judge's URL starts with http:// or https://, unlike {options.base_url!r}.")
        self.options = options
        self._url = options.base_url.rstrip("/") + "/chat/completions"
        # A redirect would take the key to another host.
        self._opener = urllib.request.build_opener(_NoRedirects)

    def ask(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The judge's reply to a conversation.

        Raises:
            BALoraError: The endpoint refuses: the key, the model or the request is wrong.
            JudgeUnavailable: It gave no answer in the allowed number of attempts.
        """
        reason, asked = "", None
        for attempt in range(self.options.attempts):
            if attempt:
                time.sleep(self._pause(attempt, asked))
            asked = None
            try:
                return self._once(messages)
            except urllib.error.HTTPError as error:
                reason = f"status {error.code}: {_said(error)}"
                if error.code not in _PASSING and error.code < 500:
                    raise BALoraError(
                        f"The judge at {self._url} refuses ({reason}).{self._hint(error.code)}"
                    ) from error
                asked = _retry_after(error)
            except TimeoutError:
                reason = f"no answer in {self.options.timeout:g} s"
            except (OSError, http.client.HTTPException) as error:
                reason = str(getattr(error, "reason", error)) or type(error).__name__
            except (ValueError, LookupError, TypeError):
                reason = "its reply is not that of a chat endpoint"
        raise JudgeUnavailable(f"{self._url}: {reason}")

    def _once(self, messages: Sequence[Mapping[str, str]]) -> str:
        body = {
            "model": self.options.model,
            "messages": list(messages),
            "temperature": 0,
            "max_tokens": self.options.max_tokens,
        }
        headers = {"Content-Type": "application/json"}
        key = os.environ.get(self.options.key_variable)
        if key:
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self._url, json.dumps(body).encode(), headers, method="POST")
        with self._opener.open(request, timeout=self.options.timeout) as response:
            content = json.loads(response.read())["choices"][0]["message"]["content"]
        if not isinstance(content, str):
            raise TypeError("no text")
        return content

    def _pause(self, attempt: int, asked: float | None) -> float:
        if asked is not None:
            return min(asked, _LONGEST_PAUSE)
        return min(self.options.pause * 2 ** (attempt - 1), _LONGEST_PAUSE) * random.uniform(0.75, 1.25)

    def _hint(self, status: int) -> str:
        variable = self.options.key_variable
        if status in (401, 403):
            known = "holds a key it does not take" if os.environ.get(variable) else "is not set"
            return f" The environment variable {variable} {known}."
        return f" Is the model {self.options.model!r} known there?" if status == 404 else ""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _said(error: urllib.error.HTTPError) -> str:
    try:
        text = error.read(2000).decode(errors="replace")
    except OSError:
        return "no reason given"
    try:
        found = json.loads(text)["error"]
        text = found["message"] if isinstance(found, dict) else found
    except (ValueError, LookupError, TypeError):
        pass
    return " ".join(str(text).split())[:200] or "no reason given"


def _retry_after(error: urllib.error.HTTPError) -> float | None:
    try:
        return max(0.0, float(error.headers.get("Retry-After", "")))
    except ValueError:
        return None


__all__ = ["Judge", "JudgeUnavailable"]
