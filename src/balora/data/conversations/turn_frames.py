"""A quick way to find the assistant's parts of a rendered conversation: the text between the messages is always the same.

The careful way (`balora.data.conversations.chat`) renders a conversation once for every message that is learnt, and more. Most
templates put the same text around a message every time. `TurnFrames` keeps that text, by the roles of a conversation, from
conversations that were read the careful way. The next conversation with these roles is rendered once. If its text is exactly
the kept text with the new messages in it, the positions of the assistant's parts are known. If not, it is read the careful way
too.

The first conversations of each kind, and one in a hundred after that, are read in both ways. If the results differ, the
template is not of this kind, and all conversations are read anew the careful way (`FramesFail`).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

from balora.data.conversations.messages import ROLES
from balora.data.conversations.rendering import Span
from balora.data.files.tables import Row

_FIRST = 3
_EVERY = 100
_KINDS = 1000

Roles = tuple[str, ...]


class FramesFail(Exception):
    """The careful way gave another result than the quick way, so the quick way cannot be used with this template."""


@dataclasses.dataclass(frozen=True)
class _Frame:
    """Text around the messages, and the position of the assistant's parts."""

    between: tuple[str, ...]
    """Text before the first message, between two messages, and after the last one."""
    parts: tuple[tuple[int, int, int], ...]
    """Learnt parts: number of the message, and the characters from the begin and end of the message to those of the part."""
    is_stripped: bool
    """True if the template removes white space around a message."""

    def fill(self, contents: Sequence[str]) -> tuple[str, list[Span]]:
        """Return the text of a conversation and its learnt parts."""
        if self.is_stripped:
            contents = [content.strip() for content in contents]
        pieces, places, at = [self.between[0]], list[tuple[int, int]](), len(self.between[0])
        for content, after in zip(contents, self.between[1:], strict=True):
            places.append((at, at + len(content)))
            pieces += (content, after)
            at += len(content) + len(after)
        spans = [(places[number][0] + begin, places[number][1] + end) for number, begin, end in self.parts]
        return "".join(pieces), spans


class TurnFrames:
    """Frames of one template, by the roles of a conversation."""

    def __init__(self) -> None:
        self._frames: dict[Roles, _Frame] = {}
        self._seen: Counter[Roles] = Counter()

    def usable(self, messages: Sequence[Row], context: object) -> Roles | None:
        """Return the roles of a conversation that can be read the quick way; None if it cannot.

        It can if messages have nothing but a role of the usual ones and a text, and the assistant has the last one.
        """
        if context or messages[-1]["role"] != "assistant":
            return None
        if any(len(m) != 2 or m["role"] not in ROLES or not m["content"].strip() for m in messages):
            return None
        return tuple(message["role"] for message in messages)

    def is_known(self, roles: Roles) -> bool:
        """Decide if the next conversation with these roles can be read the quick way only."""
        self._seen[roles] += 1
        return roles in self._frames and self._seen[roles] > _FIRST and self._seen[roles] % _EVERY != 0

    def fill(self, roles: Roles, messages: Sequence[Row]) -> tuple[str, list[Span]]:
        """Return the expected text of a conversation with known roles, and its learnt parts."""
        return self._frames[roles].fill([message["content"] for message in messages])

    def learn(self, roles: Roles, messages: Sequence[Row], text: str, spans: Sequence[Span]) -> None:
        """Keep, or compare, the frame of a conversation that was read the careful way as one text.

        Raises:
            FramesFail: The frame that is kept gives the same text and other learnt parts.
        """
        frame = self._frames.get(roles)
        if frame is not None:
            expected, parts = self.fill(roles, messages)
            if expected == text and parts != list(spans):
                raise FramesFail
            return
        found = _frame_of([message["content"] for message in messages], text, spans)
        if found is not None and len(self._frames) < _KINDS:
            self._frames[roles] = found

    def check_split(self, roles: Roles, messages: Sequence[Row], text: str) -> None:
        """Compare with a conversation that became several texts in the careful way.

        Raises:
            FramesFail: The quick way would have made it one text.
        """
        if roles in self._frames and self.fill(roles, messages)[0] == text:
            raise FramesFail


def _frame_of(contents: Sequence[str], text: str, spans: Sequence[Span]) -> _Frame | None:
    """Find the messages in their text, in their order; None if a learnt part does not belong to one message."""
    for is_stripped in (False, True):
        places, at = list[tuple[int, int]](), 0
        for content in contents:
            shown = content.strip() if is_stripped else content
            begin = text.find(shown, at)
            if begin < 0:
                break
            at = begin + len(shown)
            places.append((begin, at))
        if len(places) == len(contents):
            break
    else:
        return None
    parts = []
    for begin, end in spans:
        inside = [number for number, (first, last) in enumerate(places) if begin <= first and last <= end]
        if len(inside) != 1:
            return None
        number = inside[0]
        parts.append((number, begin - places[number][0], end - places[number][1]))
    starts = [0, *(last for _, last in places)]
    ends = [*(first for first, _ in places), len(text)]
    return _Frame(tuple(text[a:b] for a, b in zip(starts, ends, strict=True)), tuple(parts), is_stripped)
