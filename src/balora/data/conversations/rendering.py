"""Rendering of chat templates, within bounds of time and memory: a template is a program that comes with a tokenizer.

Jinja's sandbox keeps a template from files and Python's internals, but a template can still loop or fill the memory.
"""

import contextlib
import re
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from balora.errors import BALoraError

SECONDS = 10.0
"""CPU time of one rendering."""
MEMORY = 2**30
"""Bytes that one rendering may allocate."""
CHARACTERS = 20_000_000
"""Characters of one rendered conversation."""
_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")

Message = Mapping[str, Any]
Span = tuple[int, int]


class Unrenderable(Exception):
    """A conversation cannot be rendered; the message gives the reason in a few words."""


class _OutOfTime(BaseException):
    """Raised by the signal handler. Jinja catches every `Exception` while it folds constants."""


def require_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `BALoraError` if the tokenizer cannot render conversations or cannot map tokens to characters."""
    name = tokenizer.name_or_path
    if not tokenizer.chat_template:
        raise BALoraError(
            f"The tokenizer {name} has no chat template, so data.messages cannot be rendered. Give it one "
            "(data.chat_template: zephyr, or a file), use the tokenizer of a chat model (tokenizer: ...), or use prompt and "
            "response columns."
        )
    if not tokenizer.is_fast:
        raise BALoraError(f"The tokenizer {name} has no fast form (tokenizer.json), which data.messages needs.")


def marks_generation(tokenizer: PreTrainedTokenizerBase, context: Mapping[str, Any]) -> bool:
    """Check if the chat template marks the assistant's parts with ``{% generation %}``."""
    return bool(_GENERATION.search(_template(tokenizer, context)))


def render_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    context: Mapping[str, Any] | None = None,
    *,
    add_generation_prompt: bool = False,
) -> str:
    """Render a conversation. ``context`` has further variables of the template, such as ``tools``.

    Raises:
        Unrenderable: The template refuses the conversation or fails on it.
        BALoraError: The template takes too much time or memory.
    """
    with _bounded(tokenizer):
        text = tokenizer.apply_chat_template(
            _plain(messages), tokenize=False, add_generation_prompt=add_generation_prompt, **(context or {})
        )
    return _checked(tokenizer, str(text))


def render_chats(tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[Message]]) -> list[str]:
    """Render complete conversations, which together have the time and memory of one.

    Raises:
        Unrenderable: The template refuses one of them or fails on it.
        BALoraError: The template takes too much time or memory.
    """
    if not conversations:
        return []
    with _bounded(tokenizer):
        texts = tokenizer.apply_chat_template([_plain(one) for one in conversations], tokenize=False)
    return [_checked(tokenizer, str(text)) for text in texts]


def render_marked(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], context: Mapping[str, Any]
) -> tuple[str, list[Span]]:
    """Render a conversation, and return also the parts between the template's generation marks."""
    with _bounded(tokenizer):
        texts, spans = render_jinja_template(
            conversations=[_plain(messages)],
            chat_template=_template(tokenizer, context),
            return_assistant_tokens_mask=True,
            **{**tokenizer.special_tokens_map, **context},
        )
    return _checked(tokenizer, str(texts[0])), [(int(start), int(end)) for start, end in spans[0]]


def _template(tokenizer: PreTrainedTokenizerBase, context: Mapping[str, Any]) -> str:
    try:
        return str(tokenizer.get_chat_template(None, context.get("tools")))
    except ValueError as error:  # several templates, and none is the default
        raise BALoraError(f"The chat template of {tokenizer.name_or_path} is not clear: {error}") from error


def _plain(messages: Sequence[Message]) -> list[dict[str, Any]]:
    return [{key: value for key, value in message.items() if value is not None} for message in messages]


def _checked(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    if len(text) > CHARACTERS:
        raise _limit(tokenizer, f"writes {len(text):,} characters for one conversation, more than {CHARACTERS:,}")
    return text


def _limit(tokenizer: PreTrainedTokenizerBase, what: str) -> BALoraError:
    return BALoraError(
        f"The chat template of {tokenizer.name_or_path} {what}. Use the tokenizer of a model that you trust, or mend its "
        "chat_template."
    )


@contextlib.contextmanager
def _bounded(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Bound time and memory, and turn what a template raises into `Unrenderable`."""
    try:
        with _memory_bound(), _time_bound():
            yield
    except _OutOfTime as error:
        raise _limit(tokenizer, f"does not end within {SECONDS:g} seconds") from error
    except (MemoryError, OverflowError) as error:
        raise _limit(tokenizer, f"needs more than {MEMORY / 2**30:g} GiB of memory or too long a loop") from error
    except Exception as error:  # a template is a program, which can raise anything
        kind = "refuses it" if type(error).__name__ == "TemplateError" else f"fails on it: {type(error).__name__}"
        raise Unrenderable(f"the chat template {kind} ({' '.join(str(error).split())})") from error


@contextlib.contextmanager
def _time_bound() -> Iterator[None]:
    """Interrupt after `SECONDS` of CPU time. Only the main thread can be interrupted, and not on Windows."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise _OutOfTime

    before = signal.signal(signal.SIGVTALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS, 1)
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@contextlib.contextmanager
def _memory_bound() -> Iterator[None]:
    """Let allocations beyond `MEMORY` fail, on Linux."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = int(statm.read_text(encoding="ascii").split()[0]) * resource.getpagesize() + MEMORY
    bounds = [value for value in (soft, hard) if value != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([limit, *bounds]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
