"""Conversations of the data in the common formats, brought to one form.

Formats: messages with ``role`` and ``content`` (OpenAI, Hugging Face) or ``from`` and ``value`` (ShareGPT), as a list, as an object
of lists, or as JSON text. Content is text or a list of text parts. Every other key of a message goes to the chat template.
A message of the result has role and content, and under ``more`` the other keys as JSON text. A row has under ``context`` the
template's further variables as JSON text.
"""

import difflib
import json
from collections.abc import Mapping
from typing import Any

from balora.config.data_columns import ROLES
from balora.config.sections import DataConfig
from balora.data.files.tables import Row, shorten
from balora.data.values import RowProblem, encodable, is_missing

_RENAMED = {
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bot", "model"), "assistant"),
    **dict.fromkeys(("observation", "tool_response", "function_response"), "tool"),
}
LEARN_KEYS = ("weight", "train", "training", "trainable", "loss")
"""Keys of a message that say if it is learnt: 1 or 0, true or false."""
CONTEXT_COLUMNS = ("tools", "documents", "chat_template_kwargs")
"""Columns that a chat template reads beside the messages, if the data have them."""
MEDIA_COLUMNS = ("images", "image", "videos", "video", "audios", "audio")
# Arguments of transformers' apply_chat_template that are no variables of a template.
_RESERVED = (
    *("conversation", "conversations", "messages", "tools", "documents", "chat_template", "add_generation_prompt"),
    *("continue_final_message", "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
    *("return_assistant_tokens_mask", "tokenizer_kwargs", "sanitize_control_tokens"),
)


def context_columns(data: DataConfig, columns: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Return the columns that belong to a conversation, by their kind: ``tools``, ``system`` and so on.

    ``data.tools`` and ``data.system`` name columns; false leaves them out. By default the columns of these names are read.
    """
    named = {"tools": data.tools, "system": data.system}
    kinds = (*CONTEXT_COLUMNS, "system", *MEDIA_COLUMNS)
    return {kind: str(named.get(kind) or kind) for kind in kinds if named.get(kind) is not False}


def chat_style(value: Any) -> str | None:
    """Return the style of a conversation, ``OpenAI`` or ``ShareGPT``; None for any other value.

    Example:
        >>> chat_style([{"from": "human", "value": "Hi."}]), chat_style('[{"role": "user", "content": "Hi."}]'), chat_style("Hi.")
        ('ShareGPT', 'OpenAI', None)
    """
    if isinstance(value, str) and not value.lstrip().startswith(("[", "{")):
        return None
    try:
        messages = _listed(value, "")
    except RowProblem:
        return None
    for style, role, content in (("OpenAI", "role", ("content", "tool_calls")), ("ShareGPT", "from", ("value",))):
        if messages and all(role in message and any(key in message for key in content) for message in messages):
            return style
    return None


def conversation(row: Row, value: Any, data: DataConfig) -> Row:
    """Return a row's conversation: ``messages``, and ``context`` if the row has further variables for the template.

    Raises:
        RowProblem: The value is no conversation, or a message cannot be used.
    """
    roles = data.roles or {}
    messages = [
        _message(message, number, roles) for number, message in enumerate(_listed(value, str(data.messages)), 1)
    ]
    columns = context_columns(data)
    given = {kind: row[name] for kind, name in columns.items() if not is_missing(row.get(name)) and row[name] != []}
    if "system" in given:
        messages = _with_system(messages, given["system"], columns["system"])
    if not any(message["role"] == "assistant" for message in messages):
        found = ", ".join(dict.fromkeys(message["role"] for message in messages)) or "none"
        raise RowProblem(
            f"no message has the role assistant, so there is nothing to learn (the roles are {found}); data.roles says what they "
            "mean, such as {bot: assistant}"
        )
    context = _context(given, columns)
    context |= {"left_out": kept} if (kept := [columns[kind] for kind in given if kind in MEDIA_COLUMNS]) else {}
    return {"messages": messages, **({"context": _json(context, "the row")} if context else {})}


def read_conversation(row: Row) -> tuple[list[Row], dict[str, Any]]:
    """Return the messages of an example, with all their keys, and the template's further variables."""
    messages = [
        {
            "role": message["role"],
            "content": message["content"],
            **(json.loads(more) if (more := message.get("more")) else {}),
        }
        for message in row["messages"]
    ]
    return messages, json.loads(row.get("context") or "{}")


def _listed(value: Any, column: str) -> list[Row]:
    """Return a list of messages from a list, an object of lists or JSON text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            hint = "; write it as JSON, with double quotation marks" if value.lstrip().startswith("[") else ""
            raise RowProblem(
                f"{column!r} is text, which is not a list of messages{hint}: {shorten(repr(value))}"
            ) from None
    columns = list(value.values()) if isinstance(value, dict) else []
    if len(columns) > 1 and all(isinstance(one, list) and len(one) == len(columns[0]) for one in columns):
        value = [dict(zip(value, parts, strict=True)) for parts in zip(*columns, strict=True)]
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise RowProblem(
            f"{column!r} is not a list of messages, each with role and content, but {shorten(repr(value))}"
        )
    return value


def _message(message: Row, number: int, roles: Mapping[str, str]) -> Row:
    given = {key: value for key, value in message.items() if value is not None}
    role_key = next((key for key in ("role", "from") if isinstance(given.get(key), str)), None)
    content_key = next((key for key in ("content", "value") if key in message), None)
    if role_key is None:
        raise RowProblem(f"message {number} has no text under 'role' (it has {', '.join(message) or 'nothing'})")
    role, content = _role(given.pop(role_key), number, roles), given.pop(str(content_key), None)
    if role == "function_call":  # ShareGPT's form of a call: the value is JSON text
        role, content, given["function_call"] = "assistant", None, content
    _convert_calls(given, number)
    text = _text(content, given, number)
    called = given.get("tool_calls")
    if content_key is None and not called:
        raise RowProblem(f"message {number} has no text under 'content' (it has {', '.join(message)})")
    if role == "assistant" and not text.strip() and not called:
        raise RowProblem(
            f"message {number}, of the assistant, is empty" + (": its content is null" * (content is None))
        )
    if content is None and not called:
        raise RowProblem(f"message {number}, of the {role}, has no content: it is null")
    learnt = _learnt(given, number)
    if learnt is not None:
        given["weight"] = int(learnt)
    more = {"more": _json(given, f"message {number}")} if given else {}
    return {"role": role, "content": encodable(text, f"'content' of message {number}"), **more}


def _role(role: str, number: int, roles: Mapping[str, str]) -> str:
    """Return the role that a name means: by ``data.roles``, else by the usual other names."""
    name = role.strip().lower()
    name = roles.get(role.strip()) or roles.get(name) or _RENAMED.get(name, name)
    if name in ROLES or name == "function_call":
        return name
    misspelt = difflib.get_close_matches(name, ROLES, n=1, cutoff=0.8)
    if misspelt:
        raise RowProblem(f"message {number} has the role {role!r}; did you mean {misspelt[0]!r}?")
    return encodable(role, f"'role' of message {number}")


def _text(content: Any, given: Row, number: int) -> str:
    """Return the text of a content; parts are joined by new lines. A thinking part becomes ``reasoning_content``."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise RowProblem(f"'content' of message {number} is {shorten(repr(content))}, not text or a list of text parts")
    texts = []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        text = part.get("text") if isinstance(part, dict) else part
        if kind == "thinking" and isinstance(part.get("thinking"), str):
            given["reasoning_content"] = part["thinking"]
        elif kind in ("text", "input_text", "output_text") and isinstance(text, str):
            texts.append(text)
        else:
            what = (
                "a text part without text"
                if kind == "text"
                else f"a part of type {kind!r}; only text can be learnt from"
            )
            raise RowProblem(f"'content' of message {number} has {what}")
    return "\n".join(texts)


def _convert_calls(given: Row, number: int) -> None:
    """Write calls as transformers does: a list under ``tool_calls``, with arguments as an object and not as JSON text."""
    if "function_call" in given:
        call = _parsed(given.pop("function_call"), f"function_call of message {number}")
        calls = call if isinstance(call, list) else [call]
        given.setdefault("tool_calls", [{"type": "function", "function": one} for one in calls])
    if "tool_calls" not in given:
        return
    calls = _parsed(given["tool_calls"], f"tool_calls of message {number}")
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise RowProblem(f"tool_calls of message {number} is {shorten(repr(calls))}, not a list of calls")
    given["tool_calls"] = [_with_parsed_arguments(call) for call in calls]
    if not calls:
        del given["tool_calls"]


def _with_parsed_arguments(call: Row) -> Row:
    call = {key: value for key, value in call.items() if value is not None}
    if isinstance(call.get("function"), dict):
        return {**call, "function": _with_parsed_arguments(call["function"])}
    if isinstance(call.get("arguments"), str):
        try:
            arguments = json.loads(call["arguments"])
        except (ValueError, RecursionError):
            return call
        return {**call, "arguments": arguments} if isinstance(arguments, dict) else call
    return call


def _learnt(given: Row, number: int) -> bool | None:
    """Remove the keys that say if a message is learnt, and return what they say; None if there are none."""
    said = {key: given.pop(key) for key in LEARN_KEYS if key in given}
    for key, value in said.items():
        if value not in (0, 1):
            raise RowProblem(
                f"message {number} has {key} {shorten(repr(value))}, and a message is either learnt (1) or not (0)"
            )
    return all(said.values()) if said else None


def _with_system(messages: list[Row], system: Any, column: str) -> list[Row]:
    if not isinstance(system, str):
        raise RowProblem(f"{column!r} is {shorten(repr(system))}, not the text of a system message")
    first = messages[0] if messages and messages[0]["role"] in ("system", "developer") else None
    if first is not None and first["content"] != system:
        raise RowProblem(
            f"the conversation has a system message and {column!r} has another one; keep one (data.system: false)"
        )
    return (
        messages if first is not None else [{"role": "system", "content": encodable(system, repr(column))}, *messages]
    )


def _context(given: Row, columns: Mapping[str, str]) -> Row:
    context: Row = {}
    for kind in CONTEXT_COLUMNS:
        if kind not in given:
            continue
        value = _without_nulls(_parsed(given[kind], repr(columns[kind])))
        if kind == "chat_template_kwargs":
            reserved = sorted({*value} & {*_RESERVED}) if isinstance(value, dict) else ["a list"]
            if reserved:
                raise RowProblem(f"{columns[kind]!r} is not an object of template variables: it has {reserved[0]}")
            context |= value
            continue
        values = [_parsed(one, repr(columns[kind])) for one in (value if isinstance(value, list) else [value])]
        if not all(isinstance(one, dict) for one in values):
            raise RowProblem(f"{columns[kind]!r} is {shorten(repr(value))}, not a list of objects")
        context |= {kind: values} if values else {}
    return context


def _parsed(value: Any, name: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise RowProblem(f"{name} is text that is not JSON: {shorten(repr(value))}") from None


def _without_nulls(value: Any) -> Any:
    """Leave out keys without a value: tables of objects, such as Parquet's, give every object the keys of all."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _json(value: Row, name: str) -> str:
    try:
        return encodable(json.dumps(value, ensure_ascii=False), f"a value of {name}")
    except (TypeError, ValueError) as error:
        raise RowProblem(f"a value of {name} cannot be written as JSON ({error})") from None
