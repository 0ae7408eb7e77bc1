"""Conversations as tokens: the tokenizer's chat template renders them, and the model learns the assistant's messages.

If the template marks the assistant's parts with ``{% generation %}``, these parts are learnt. Other templates are rendered up to
an assistant's message, with the generation prompt, and again including that message. The difference is the message with its
end-of-turn token. A complete text is tokenized once, so the model sees exactly the text that the template makes.

A template may render a message differently once others follow it: reasoning templates drop the thoughts of earlier turns. Such
a conversation becomes several examples. Each ends with an assistant's message as it is rendered when it is the last one, and has
the earlier turns as context that is not learnt, as at inference.
"""

import dataclasses
import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from balora.data.conversations.messages import ROLES
from balora.data.conversations.rendering import (
    Span,
    Unrenderable,
    marks_generation,
    render_chat,
    render_chats,
    render_marked,
)
from balora.data.conversations.turn_frames import Roles, TurnFrames
from balora.data.files.tables import Row
from balora.data.special_text import Marker, encode, find, has_marks, mark, special_tokens, unmark
from balora.errors import BALoraError

_TRIES = 20
_TOGETHER = 16
"""Conversations that are rendered together the quick way."""
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_PROBE = "\ue0f0"
_MARK_IT = (
    "mark that part in the tokenizer's chat_template with {% generation %} and {% endgeneration %}, or use prompt and "
    "response columns"
)


@dataclasses.dataclass(frozen=True)
class _Text:
    """A rendered text and its learnt parts, as pairs of first character and end (exclusive)."""

    text: str
    spans: list[Span]


class ChatEncoder:
    """Tokenization of conversations with one tokenizer. It counts what its notes say."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, marker: Marker | None = None, *, quick: bool = True) -> None:
        """Take the tokenizer and the marker of special tokens; ``quick`` allows `balora.data.conversations.turn_frames`."""
        self._tokenizer, self._marker = tokenizer, marker or Marker(tokenizer)
        self._frames = TurnFrames() if quick else None
        self._as_parts: bool | None = None
        self._rendered: set[tuple[str, str]] = set()
        self._unrendered: Counter[tuple[str, str]] = Counter()
        self._others: Counter[str] = Counter()
        self._thoughtless = Counter[str]()
        self._split = Counter[str]()

    def encode(
        self, messages: Sequence[Row], context: dict[str, Any] | None = None
    ) -> list[tuple[list[int], list[bool]]]:
        """Tokenize a conversation. Return one or more examples: token ids, and for each token whether the model learns it.

        Raises:
            Unrenderable: The template refuses the conversation, or the assistant's part cannot be found in the text.
        """
        return [self._tokens(text) for text in self._careful(messages, dict(context or {}))]

    def encode_batch(
        self, conversations: Sequence[tuple[Sequence[Row], dict[str, Any]]]
    ) -> list[list[tuple[list[int], list[bool]]] | Unrenderable]:
        """Tokenize conversations, each with its context, as `encode` does. The reason takes the place of one that cannot be.

        Raises:
            FramesFail: The quick way cannot be used; encode all conversations anew with ``quick`` off.
        """
        texts: list[list[_Text] | Unrenderable | None] = [None] * len(conversations)
        for start in range(0, len(conversations), _TOGETHER):  # so that the quick way is known early
            some = conversations[start : start + _TOGETHER]
            quick = self._quick(some)
            for at, (messages, context) in enumerate(some):
                try:
                    texts[start + at] = [quick[at]] if at in quick else self._careful(messages, dict(context))
                except Unrenderable as problem:
                    texts[start + at] = problem
        plain = [text for made in texts if isinstance(made, list) for text in made if not has_marks([text.text])]
        tokens = iter(_tokens_of(self._tokenizer, plain))
        return [
            [self._tokens(text) if has_marks([text.text]) else next(tokens) for text in made]
            if isinstance(made, list)
            else made  # type: ignore[misc]
            for made in texts
        ]

    def _quick(self, conversations: Sequence[tuple[Sequence[Row], dict[str, Any]]]) -> dict[int, _Text]:
        """Return the texts of the conversations that can be read the quick way, by their number."""
        if self._frames is None or self._as_parts:
            return {}
        names, known = special_tokens(self._tokenizer), dict[int, Roles]()
        for at, (messages, context) in enumerate(conversations):
            roles = self._frames.usable(messages, context)
            has_names = roles is not None and any(name in m["content"] for m in messages for name in names)
            if roles is not None and not has_names and self._frames.is_known(roles):
                known[at] = roles
        try:
            rendered = render_chats(self._tokenizer, [conversations[at][0] for at in known])
        except (Unrenderable, BALoraError):  # one of them is at fault, and the careful way says which
            return {}
        texts = {}
        for (at, roles), text in zip(known.items(), rendered, strict=True):
            expected, spans = self._frames.fill(roles, conversations[at][0])
            if expected == text:
                texts[at] = _Text(text, spans)
        return texts

    def _careful(self, messages: Sequence[Row], context: dict[str, Any]) -> list[_Text]:
        """Render a conversation up to each learnt message, and look at everything that can differ."""
        given, roles = messages, None
        if self._frames is not None and not find(self._tokenizer, [m["content"] for m in messages]):
            roles = self._frames.usable(messages, context)
        for column in context.pop("left_out", []):
            self._others[f"the column {column!r} is left out, because only text is learnt from"] += 1
        learnt = [m["role"] == "assistant" and bool(m.get("weight", 1)) for m in messages]
        turns = [number for number, is_learnt in enumerate(learnt) if is_learnt]
        messages, context = self._marked(self._with_readable_calls(self._prepared(messages), context), context)
        texts = self._texts(messages, context, turns)
        self._look_for_unrendered(messages, context)
        self._look_for_thoughts([messages[number] for number in turns], texts)
        if len(texts) > 1:
            self._split["conversations"] += 1
            self._split["examples"] += len(texts)
        if self._frames is not None and roles is not None:
            if len(texts) == 1:
                self._frames.learn(roles, given, texts[0].text, texts[0].spans)
            else:
                self._frames.check_split(roles, given, render_chat(self._tokenizer, messages, context))
        return texts

    def counts(self) -> tuple[Any, ...]:
        """Return what was counted for the notes, to add it up over processes."""
        return self._rendered, self._unrendered, self._others, self._thoughtless, self._split

    def add(self, counts: tuple[Any, ...]) -> None:
        """Add what another process counted."""
        for own, other in zip(self.counts(), counts, strict=True):
            own.update(other)

    def notes(self, part: str) -> list[str]:
        """Return sentences about what was left out and how conversations were divided."""
        notes = [
            f"The chat template does not render {what} of messages with the role {role}, so it is left out "
            f"({count:,} {part} rows looked at)."
            if role
            else f"The chat template does not render {what}, so it is left out ({count:,} {part} rows looked at)."
            for (role, what), count in self._unrendered.items()
            if (role, what) not in self._rendered
        ]
        notes += [
            f"The chat template leaves out {key} of {count:,} messages of the {part} rows, as it does in earlier turns."
            for key, count in self._thoughtless.items()
            if ("", key) in self._rendered
        ]
        notes += [f"In the {part} rows, {what} ({count:,} times)." for what, count in self._others.items()]
        if self._split:
            notes.append(
                f"The chat template renders earlier turns of {self._split['conversations']:,} {part} conversations "
                f"differently once others follow, so these became {self._split['examples']:,} examples, each of which ends "
                "with the turns that it learns."
            )
        return notes

    def _tokens(self, text: _Text) -> tuple[list[int], list[bool]]:
        ids, offsets = encode(self._tokenizer, text.text)
        return ids, _learnt(offsets, text.spans)

    def _prepared(self, messages: Sequence[Row]) -> list[Row]:
        """Count what cannot be honoured, and give the template content as parts if it reads only parts."""
        for message in messages:
            if message["role"] not in ROLES:
                self._others[
                    f"messages with the role {message['role']!r} go to the chat template and are not learnt"
                ] += 1
            if message.get("weight") and message["role"] != "assistant":
                self._others["a weight of a message that is not the assistant's has no effect"] += 1
            calls = [call.get("function", call) for call in message.get("tool_calls", [])]
            if any(None in call["arguments"].values() for call in calls if isinstance(call.get("arguments"), dict)):
                self._others[
                    "calls have arguments that are null and are learnt as null; if they come from a table of objects, "
                    "write arguments as JSON text"
                ] += 1
        if self._as_parts is None:
            self._as_parts = self._reads_only_parts()
        return [
            {
                **{key: value for key, value in message.items() if key != "weight"},
                "content": [{"type": "text", "text": message["content"]}] if self._as_parts else message["content"],
            }
            for message in messages
        ]

    def _with_readable_calls(self, messages: list[Row], context: dict[str, Any]) -> list[Row]:
        """Write arguments of calls as JSON text if the template adds them to a text; most templates read objects."""
        written = [
            {**m, "tool_calls": _with_text_arguments(m["tool_calls"])} if "tool_calls" in m else m for m in messages
        ]
        if written == messages or self._try(messages, context) is not None or self._try(written, context) is None:
            return messages
        return written

    def _reads_only_parts(self) -> bool:
        """Check if content given as text does not appear in the rendered text, and content given as a part does."""
        shown = []
        for content in (_PROBE * 3, [{"type": "text", "text": _PROBE * 3}]):
            try:
                shown.append(_PROBE * 3 in render_chat(self._tokenizer, [{"role": "user", "content": content}]))
            except Unrenderable:
                shown.append(False)
        return shown == [False, True]

    def _marked(self, messages: list[Row], context: dict[str, Any]) -> tuple[list[Row], dict[str, Any]]:
        """Mark the text of special tokens in all values, except tokens by which the template itself divides a text."""
        values = {"messages": messages, "context": context}
        found = find(self._tokenizer, values)
        if not found or self._marker.as_tokens:
            self._marker.count(found)
            return messages, context
        if not self._same_text(values, found):
            own = {token for token in found if not self._same_text(values, {token})}
            found -= own
            for token in own:
                self._others[
                    f"the chat template itself reads {token} in a text, so it stays a special token there"
                ] += 1
        self._marker.count(found)
        marked = mark(self._tokenizer, values, found)
        return marked["messages"], marked["context"]

    def _same_text(self, values: dict[str, Any], tokens: set[str]) -> bool:
        """Check that the template makes the same text of marked values."""
        one, other = (
            unmark(self._tokenizer, render_chat(self._tokenizer, some["messages"], some["context"]))
            for some in (values, mark(self._tokenizer, values, tokens))
        )
        return one == other

    def _texts(self, messages: list[Row], context: dict[str, Any], learnt: list[int]) -> list[_Text]:
        if marks_generation(self._tokenizer, context):
            return [self._by_generation_marks(messages, context, learnt)]
        if not learnt:
            return [_Text(render_chat(self._tokenizer, messages, context), [])]
        return list(self._by_turns(messages, context, learnt))

    def _by_generation_marks(self, messages: list[Row], context: dict[str, Any], learnt: list[int]) -> _Text:
        text, spans = render_marked(self._tokenizer, messages, context)
        answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        if len(learnt) == len(answers):
            return _Text(text, spans)
        if len(spans) != len(answers):
            raise Unrenderable(
                f"it has messages that are not to be learnt, and the chat template marks {len(spans)} parts for "
                f"{len(answers)} messages of the assistant, so they cannot be told apart"
            )
        return _Text(text, [span for number, span in zip(answers, spans, strict=True) if number in learnt])

    def _by_turns(self, messages: list[Row], context: dict[str, Any], learnt: list[int]) -> Iterator[_Text]:
        """Find the learnt messages by rendering the conversation up to each. Begin a new text where the last one changes."""
        text, spans = "", list[Span]()
        for number in learnt:
            until_end = render_chat(self._tokenizer, messages[: number + 1], context)
            if spans and not until_end.startswith(text):
                yield _Text(text, spans)
                spans = []
            text = until_end
            spans = [*spans, (self._begin(messages, number, context, until_end), len(until_end))]
        if learnt[-1] < len(messages) - 1:
            complete = render_chat(self._tokenizer, messages, context)
            text = complete if complete.startswith(text) else text
        yield _Text(text, spans)

    def _begin(self, messages: list[Row], number: int, context: dict[str, Any], until_end: str) -> int:
        """Find the first character of an assistant's message in the text that ends with it."""
        before = messages[:number]
        if not before:
            return 0
        prompt = self._try(before, context, add_generation_prompt=True)
        if prompt is not None and until_end.startswith(prompt):
            return len(prompt)
        bare = self._try(before, context)
        if bare is None or not until_end.startswith(bare):
            bare = None
        # The generation prompt can have more than the message has, such as an opening <think>. What both have is not learnt.
        if prompt is not None:
            probe = self._try([*before, {**messages[number], "content": _PROBE}], context) or ""
            shared = _common_start(prompt, probe, until_end)
            if shared > len(bare or ""):
                return shared
        if bare is None:
            raise Unrenderable(
                f"the chat template renders the text before message {number + 1} differently when the conversation ends "
                f"there, so the assistant's part cannot be found; {_MARK_IT}"
            )
        return len(bare)

    def _try(self, messages: list[Row], context: dict[str, Any], **options: Any) -> str | None:
        """Render a part of a conversation; None if the template refuses it, for example without a user's message."""
        try:
            return render_chat(self._tokenizer, messages, context, **options)
        except Unrenderable:
            return None

    def _look_for_unrendered(self, messages: list[Row], context: dict[str, Any]) -> None:
        """Compare the text with and without each key that was not yet seen to change the text."""
        for name in context:
            if self._undecided("", name):
                less = {key: value for key, value in context.items() if key != name}
                self._compare("", name, messages, messages, context, less)
        last: dict[tuple[str, str], int] = {}
        for number, message in enumerate(messages):
            kinds = [key for key in message if key not in ("role", "content")]
            last |= {("", key): number for key in kinds}
            if message["role"] != "assistant" and message["content"]:
                last[message["role"], "the content"] = number
        for (role, what), number in last.items():
            if self._undecided(role, what):
                changed = {k: v for k, v in messages[number].items() if k != what}
                if role:
                    changed["content"] = _replaced(messages[number]["content"])
                until = [*messages[:number], messages[number]]
                self._compare(role, what, until, [*messages[:number], changed], context, context)

    def _look_for_thoughts(self, learnt: list[Row], texts: list[_Text]) -> None:
        """Count learnt messages whose thoughts are in no text, as templates leave out the thoughts of earlier turns."""
        for message in learnt:
            for key in _THOUGHTS:
                thoughts = message.get(key)
                if isinstance(thoughts, str) and not any(thoughts.strip() in text.text for text in texts):
                    self._thoughtless[key] += 1

    def _undecided(self, role: str, what: str) -> bool:
        return (role, what) not in self._rendered and self._unrendered[role, what] < _TRIES

    def _compare(
        self, role: str, what: str, one: list[Row], other: list[Row], context: dict[str, Any], less: dict[str, Any]
    ) -> None:
        first, second = self._try(one, context), self._try(other, less)
        if first is None or first != second:
            self._rendered.add((role, what))
        else:
            self._unrendered[role, what] += 1


def _tokens_of(tokenizer: PreTrainedTokenizerBase, texts: Sequence[_Text]) -> Iterator[tuple[list[int], list[bool]]]:
    """Tokenize texts that have no marks, in one call."""
    if texts:
        encoded: Any = tokenizer(
            [text.text for text in texts],
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        for text, ids, offsets in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            yield ids, _learnt(offsets, text.spans)


def _learnt(offsets: Sequence[tuple[int, int]], spans: Sequence[Span]) -> list[bool]:
    """Return for each token whether it begins in a learnt part. A token without characters is not learnt."""
    starts = [start for start, _ in offsets]
    if starts != sorted(starts):
        return [any(a <= start < b and end > start for a, b in spans) for start, end in offsets]
    learnt = [False] * len(starts)
    for begin, stop in spans:
        first, last = bisect_left(starts, begin), bisect_left(starts, stop)
        learnt[first:last] = [end > start for start, end in offsets[first:last]]
    return learnt


def _with_text_arguments(calls: list[Row]) -> list[Row]:
    """Return calls with their arguments as JSON text."""
    changed = []
    for call in calls:
        inner = call.get("function", call)
        if isinstance(inner.get("arguments"), dict):
            inner = {**inner, "arguments": json.dumps(inner["arguments"], ensure_ascii=False)}
        changed.append({**call, "function": inner} if "function" in call else inner)
    return changed


def _common_start(*texts: str) -> int:
    """Return the number of characters at the beginning that all texts have in common."""
    columns = zip(*texts, strict=False)
    return next((at for at, column in enumerate(columns) if len(set(column)) > 1), min(map(len, texts)))


def _replaced(content: Any) -> Any:
    """Return other content of the same kind."""
    return f"{_PROBE}1" if isinstance(content, str) else [{"type": "text", "text": f"{_PROBE}1"}]
