"""Ask a judge for ratings: the prompts, the rating in a reply, and the client of an OpenAI-compatible endpoint."""

import contextlib
import dataclasses
import http.client
import json
import os
import queue
import random
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from balora.errors import BALoraError
from balora.evaluation.options import JudgeOptions

_NUMBER = r"(\d{1,3}(?:\.\d+)?)\s*(?:(?:/|out\s+of)\s*10\b)?"
_NOT_PARTIAL = r"(?![\d.,]*\d|\s*(?:/|[-–]|out\s+of\s)\s*\d)"  # not "8/100", "7-8" or "8,5"
_LABEL = r"\b(?:rating|score|grade)\b"
_LABELLED = re.compile(
    # "Rating: [[8]]", "**Rating**: 8/10", "[[rating]]: 8", "Rating (1-10): [8]", "the rating of this answer is [[8]]"
    rf"{_LABEL}[\]*_\s]*(?:\([^()\n]{{0,30}}\))?[*_\s]*[:=][*_\s]*(?:\[{{1,2}}\s*{_NUMBER}\s*\]{{1,2}}(?!\])|{_NUMBER}(?!\w)){_NOT_PARTIAL}"
    rf"|{_LABEL}(?!\s+(?:scale|from|between))[^\[\]\n.:]{{0,60}}\[\[\s*{_NUMBER}\s*\]\]{_NOT_PARTIAL}",
    re.IGNORECASE,
)
_BRACKETS = re.compile(rf"\[\[\s*{_NUMBER}\s*\]\]{_NOT_PARTIAL}")
_RANGE = re.compile(r"(?:\b(?:from|between|to|and|of|than)|[-–])\s*$", re.IGNORECASE)
_END = re.compile(r"[\s*_.!)]*\Z")

_TASK = (
    "You are to rate, as an impartial judge, {what}. Look at how helpful, relevant, correct, thorough, original and detailed "
    "it is.{reference} First explain your view in a few sentences, as objectively as you can. Then give a whole or decimal "
    'number from 1 (worst) to 10 (best) in exactly this form: "Rating: [[number]]", for example "Rating: [[5]]".'
)
_REFERENCE = " Compare it with the reference answer, which is right, and name its mistakes."
_ONE = "an AI assistant's answer to a user's question"
_TWO = "an AI assistant's answer to the second question of a conversation"
_SYSTEM = "You judge the answers of AI assistants."


@dataclasses.dataclass(frozen=True)
class JudgePrompt:
    """Prompt of the judge, with placeholders for question, answer and reference."""

    system: str
    template: str

    def messages(self, **values: str) -> list[dict[str, str]]:
        """Fill the placeholders in. Braces in the values are not placeholders."""
        placeholders = re.compile(r"\{(" + "|".join(values) + r")\}")
        content = placeholders.sub(lambda match: values[match[1]], self.template)
        return [{"role": "system", "content": self.system}, {"role": "user", "content": content}]


DEFAULT_PROMPTS = {
    "single-v1": JudgePrompt(
        _SYSTEM,
        _TASK.format(what=_ONE, reference="") + "\n\n[Question]\n{question}\n\n[Answer]\n{answer}\n[End of answer]",
    ),
    "single-math-v1": JudgePrompt(
        _SYSTEM,
        _TASK.format(what=_ONE, reference=_REFERENCE)
        + "\n\n[Question]\n{question}\n\n[Reference answer]\n{ref_answer_1}\n[End of reference answer]"
        + "\n\n[Answer]\n{answer}\n[End of answer]",
    ),
    "single-v1-multi-turn": JudgePrompt(
        _TASK.format(what=_TWO, reference=""),
        "[First question]\n{question_1}\n\n[First answer]\n{answer_1}\n\n[Second question]\n{question_2}\n\n"
        "[Second answer]\n{answer_2}\n[End of conversation]",
    ),
    "single-math-v1-multi-turn": JudgePrompt(
        _TASK.format(what=_TWO, reference=_REFERENCE),
        "[Reference answer to the first question]\n{ref_answer_1}\n\n[Reference answer to the second question]\n"
        "{ref_answer_2}\n\n[First question]\n{question_1}\n\n[First answer]\n{answer_1}\n\n[Second question]\n{question_2}\n\n"
        "[Second answer]\n{answer_2}\n[End of conversation]",
    ),
}
"""balora's own prompts, by MT-Bench's names; ``math`` means with a reference answer.

Published scores are comparable only if MT-Bench's own ``judge_prompts.jsonl`` is used (see `read_prompts`)."""


def read_prompts(rows: Sequence[Mapping[str, Any]]) -> dict[str, JudgePrompt]:
    """Read the rows of MT-Bench's own ``judge_prompts.jsonl``."""
    found = {row["name"]: row for row in rows}
    texts = {name: (str(found[name]["system_prompt"]), str(found[name]["prompt_template"])) for name in DEFAULT_PROMPTS}
    return {name: JudgePrompt(*pair) for name, pair in texts.items()}


def parse_rating(reply: str) -> float | None:
    """Return the rating in a judge's reply, 1 to 10, or None if there is none or it is in doubt.

    The last number after the word "rating" counts. Without that word, a number in double brackets counts if it is alone on its
    line, or ends the reply and is no end of a range.

    Example:
        >>> parse_rating("Fine, but [[2]] short.\\nRating: [[7.5]]"), parse_rating("Rating: [8]"), parse_rating("[[11]] of 10")
        (7.5, 8.0, None)
    """
    reply = reply[-_MAX_JUDGMENT:]
    labelled = [float(next(filter(None, match.groups()))) for match in _LABELLED.finditer(reply)]
    if labelled:
        return labelled[-1] if 1 <= labelled[-1] <= 10 else None
    found = []
    for match in _BRACKETS.finditer(reply):
        before, after = reply[: match.start()].rpartition("\n")[2], reply[match.end() :]
        alone = not before.strip("*_ ") and not after.partition("\n")[0].strip("*_. ")
        if alone or (_END.match(after) and not _RANGE.search(before)):
            found.append(float(match[1]))
    return found[-1] if len(set(found)) == 1 and 1 <= found[-1] <= 10 else None


_MAX_JUDGMENT = 100_000
"""Characters of a reply, from its end, that are searched for a rating."""
_MAX_PAUSE = 60.0
_MAX_REPLY = 4 << 20
"""Bytes of a response. A judgment of 2,048 tokens has some ten thousand."""
_RETRIED_STATUSES = {408, 409, 425, 429}


class JudgeUnavailable(Exception):
    """Raised when the endpoint gave no answer to any of the allowed requests."""


class Judge:
    """Client of the judge's endpoint.

    Problems that may pass (time-outs, lost connections, status 429 or 5xx, malformed or endless replies) are retried after a
    growing pause, or after the pause that the server asks for. A wrong key or an unknown model raises without a retry. The key is
    read from the environment for each request. It is never written anywhere: where a server repeats it, it is replaced.
    """

    def __init__(self, options: JudgeOptions) -> None:
        self.options = options
        self._url = _chat_url(options.base_url)
        # A redirect could send the key to another host.
        self._opener = urllib.request.build_opener(_NoRedirects)

    def ask(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Return the judge's reply to a conversation."""
        place, reason, retry_after, key = public_url(self._url), "", None, self._key()
        for attempt in range(self.options.attempts):
            if attempt:
                time.sleep(self._pause(attempt, retry_after))
            retry_after = None
            try:
                return _without(key, self._request(messages, key))
            except urllib.error.HTTPError as error:
                reason = _without(key, f"status {error.code}: {error.msg}")
                if error.code not in _RETRIED_STATUSES and error.code < 500:
                    # "from None": the server's own words, which may repeat the key, must not be in a traceback.
                    raise BALoraError(
                        f"The judge at {place} rejects the request ({reason}).{self._hint(error.code)}"
                    ) from None
                retry_after = _retry_after(error)
            except TimeoutError:
                reason = f"no complete answer in {self.options.timeout:g} s"
            except _TooLong:
                reason = f"the reply has more than {_MAX_REPLY >> 20} MiB"
            except (OSError, http.client.HTTPException) as error:
                reason = _without(key, str(getattr(error, "reason", error)) or type(error).__name__)
            except (ValueError, LookupError, TypeError, RecursionError):
                reason = "the reply is not that of a chat endpoint"
        raise JudgeUnavailable(f"{place}: {reason}")

    def _key(self) -> str:
        key = os.environ.get(self.options.key_variable, "").strip()
        if not key.isprintable() or not key.isascii():
            raise BALoraError(
                f"The environment variable {self.options.key_variable} has characters that no key has. Set it to the key alone."
            )
        return key

    def _request(self, messages: Sequence[Mapping[str, str]], key: str) -> str:
        """Send one request and read its reply, within the time limit in all.

        The limits of sockets are for each part of a reply, so that a slow server could send one byte a minute for ever. A thread
        waits for the server; it is left behind when the time is over.
        """
        options = self.options
        body = {"model": options.model, "messages": messages, "temperature": 0, "max_tokens": options.max_tokens}
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        request = urllib.request.Request(self._url, json.dumps(body).encode(), headers, method="POST")
        deadline = time.monotonic() + options.timeout
        replies: queue.SimpleQueue[bytes | BaseException] = queue.SimpleQueue()

        def send() -> None:
            try:
                with self._opener.open(request, timeout=options.timeout) as response:
                    replies.put(_read(response, deadline, _MAX_REPLY))
            except urllib.error.HTTPError as error:
                with error:
                    error.msg = _error_message(error, deadline)
                replies.put(error)
            except BaseException as error:
                replies.put(error)

        threading.Thread(target=send, daemon=True).start()
        try:
            reply = replies.get(timeout=options.timeout)
        except queue.Empty:
            raise TimeoutError from None
        if isinstance(reply, BaseException):
            raise reply
        content = json.loads(reply)["choices"][0]["message"]["content"]
        if not isinstance(content, str):
            raise TypeError("no text")
        return content

    def _pause(self, attempt: int, retry_after: float | None) -> float:
        if retry_after is not None:
            return min(retry_after, _MAX_PAUSE)
        return min(self.options.pause * 2 ** (attempt - 1), _MAX_PAUSE) * random.uniform(0.75, 1.25)

    def _hint(self, status: int) -> str:
        variable = self.options.key_variable
        if status in (401, 403):
            problem = "has a key that the judge does not accept" if os.environ.get(variable) else "is not set"
            return f" The environment variable {variable} {problem}."
        return f" Check the model name {self.options.model!r}." if status == 404 else ""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class _TooLong(Exception):
    """Raised when a reply has more bytes than allowed."""


def _chat_url(base_url: str) -> str:
    """Return the address of the chat endpoint. A query such as Azure's ``?api-version=`` is kept."""
    parts = urllib.parse.urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise BALoraError(
            f"The judge's URL must start with http:// or https:// and have a host, not {public_url(base_url)!r}."
        )
    if "@" in parts.netloc:
        raise BALoraError(
            "The judge's URL has a user name or password, which would be written into the results. Leave it out, and put the "
            "key into the environment variable that --judge-key-variable names."
        )
    return parts._replace(path=parts.path.rstrip("/") + "/chat/completions", fragment="").geturl()


def public_url(url: str) -> str:
    """Return a URL without user name, password and query, for messages and results.

    Example:
        >>> public_url("https://me:secret@example.org/v1?key=secret")
        'https://example.org/v1'
    """
    parts = urllib.parse.urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _without(key: str, text: str) -> str:
    """Replace the key in a text that came from a server."""
    return text.replace(key, "(key)") if len(key) > 3 else text


def _read(response: Any, deadline: float, limit: int) -> bytes:
    """Read a response up to its end. Too long or too slow a response raises."""
    parts, size = [], 0
    while part := response.read1(65536):
        parts.append(part)
        size += len(part)
        if size > limit:
            raise _TooLong
        if time.monotonic() > deadline:
            raise TimeoutError
    if response.length:  # bytes that Content-Length announced and the server did not send
        raise http.client.IncompleteRead(b"", response.length)
    return b"".join(parts)


def _error_message(error: urllib.error.HTTPError, deadline: float) -> str:
    text = ""
    with contextlib.suppress(
        OSError, ValueError, LookupError, TypeError, RecursionError, _TooLong, http.client.HTTPException
    ):
        text = _read(error.fp, deadline, 65536).decode(errors="replace")
        found = json.loads(text)["error"]
        text = found["message"] if isinstance(found, dict) else found
    printable = "".join(character if character.isprintable() else " " for character in str(text)[:2000])
    return " ".join(printable.split())[:200] or "no reason given"


def _retry_after(error: urllib.error.HTTPError) -> float | None:
    try:
        return max(0.0, float(error.headers.get("Retry-After", "")))
    except ValueError:
        return None
