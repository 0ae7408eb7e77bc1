"""Conversations as they are met in public, with what is learnt from each, and what is said."""

from __future__ import annotations

import json

import pytest

from balora.config.run_config import DataConfig
from balora.data.conversations import rendering
from balora.data.conversations.chat import ChatEncoder
from balora.data.conversations.rendering import Unrenderable
from balora.data.examples import load_examples
from balora.data.tokenize import tokenize_examples
from balora.errors import BALoraError
from tiny import tiny_tokenizer

ASKS = "{% if add_generation_prompt %}[assistant]{% endif %}"
# Renders every key that common templates know.
FULL = (
    "{% if tools %}[tools]{{ tools | tojson }}^{% endif %}"
    "{% for m in messages %}[{{ m.role }}]"
    "{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<{{ c.function.name }}={{ c.function.arguments.x }}>{% endfor %}^{% endfor %}"
    + ASKS
)
PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}^{% endfor %}" + ASKS
# Like Qwen 3: thoughts are rendered only after the last message of the user.
THINK = (
    "{% set ns=namespace(last=-1) %}{% for m in messages %}{% if m.role=='user' %}{% set ns.last=loop.index0 %}{% endif %}"
    "{% endfor %}{% for m in messages %}[{{ m.role }}]{% if m.role=='assistant' and loop.index0 > ns.last %}"
    "({{ m.reasoning_content or '' }}){% endif %}{{ m.content }}^{% endfor %}" + ASKS
)
MARKED = (
    "{% for m in messages %}[{{ m.role }}]{% if m.role=='assistant' %}{% generation %}{{ m.content }}^{% endgeneration %}"
    "{% else %}{{ m.content }}^{% endif %}{% endfor %}" + ASKS
)
# Like DeepSeek R1: the generation prompt opens a thought that stored messages do not have.
OPENS = PLAIN.replace("[assistant]", "[assistant](\n")
PARTS = (
    "{% for m in messages %}[{{ m.role }}]{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}"
    "{% endfor %}^{% endfor %}" + ASKS
)


def user(text, **more):
    return {"role": "user", "content": text, **more}


def bot(text, **more):
    return {"role": "assistant", "content": text, **more}


def call(arguments):
    return [{"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}]


def tokenized(jsonl, template, *rows, **keys):
    """Return the texts of the examples, with the learnt parts in «», and the notes."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    data = DataConfig(train=jsonl(*rows), messages="m", max_length=500, **keys)
    tokens = tokenize_examples(load_examples(data, "generation"), tokenizer, data, "generation")
    texts = []
    for row in tokens.train:
        names = tokenizer.convert_ids_to_tokens(row["input_ids"])
        shown = [f"«{n}»" if label >= 0 else n for n, label in zip(names, row["labels"], strict=True)]
        texts.append("".join(shown).replace("»«", ""))
    return texts, " ".join(tokens.notes)


READ = {
    "content as parts": (
        PLAIN,
        {
            "m": [
                user([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]),
                bot([{"type": "text", "text": "c"}]),
            ]
        },
        ["[user]a<unk>b^[assistant]«c^»"],
        "",
    ),
    "a template that reads only parts": (PARTS, {"m": [user("a"), bot("c")]}, ["[user]a^[assistant]«c^»"], ""),
    "ShareGPT": (
        PLAIN,
        {"m": [{"from": "system", "value": "s"}, {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        ["[system]s^[user]a^[assistant]«b^»"],
        "",
    ),
    "ShareGPT with tools": (
        FULL,
        {
            "m": [
                {"from": "human", "value": "a"},
                {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
                {"from": "observation", "value": "o"},
                {"from": "gpt", "value": "b"},
            ]
        },
        ["[user]a^[assistant]«<f=1>^»[tool]o^[assistant]«b^»"],
        "",
    ),
    "ShareGPT's roles under role and content": (
        PLAIN,
        {"m": [{"role": "human", "content": "a"}, {"role": "gpt", "content": "b"}]},
        ["[user]a^[assistant]«b^»"],
        "",
    ),
    "roles in capitals": (
        PLAIN,
        {"m": [{"role": "User", "content": "a"}, {"role": "ASSISTANT", "content": "b"}]},
        ["[user]a^[assistant]«b^»"],
        "",
    ),
    "JSON text": (PLAIN, {"m": json.dumps([user("a"), bot("b")])}, ["[user]a^[assistant]«b^»"], ""),
    "an object of lists": (
        PLAIN,
        {"m": {"role": ["user", "assistant"], "content": ["a", "b"]}},
        ["[user]a^[assistant]«b^»"],
        "",
    ),
    "a turn with weight 0": (
        PLAIN,
        {"m": [user("a"), bot("b", weight=0), user("c"), bot("d", weight=1)]},
        ["[user]a^[assistant]b^[user]c^[assistant]«d^»"],
        "",
    ),
    "a turn with train false": (
        PLAIN,
        {"m": [user("a"), bot("b", train=False), user("c"), bot("d")]},
        ["[user]a^[assistant]b^[user]c^[assistant]«d^»"],
        "",
    ),
    "weight 0 under generation marks": (
        MARKED,
        {"m": [user("a"), bot("b"), user("c"), bot("d", weight=0)]},
        ["[user]a^[assistant]«b^»[user]c^[assistant]d^"],
        "",
    ),
    "a weight of the user": (
        PLAIN,
        {"m": [user("a", weight=1), bot("b")]},
        ["[user]a^[assistant]«b^»"],
        "has no effect (1 times)",
    ),
    "reasoning that is rendered": (
        FULL,
        {"m": [user("a"), bot("b", reasoning_content="r")]},
        ["[user]a^[assistant]«(r)b^»"],
        "",
    ),
    "reasoning that is not rendered": (
        PLAIN,
        {"m": [user("a"), bot("b", reasoning_content="r")]},
        ["[user]a^[assistant]«b^»"],
        "The chat template does not render reasoning_content, so it is left out",
    ),
    "a name that is not rendered": (
        PLAIN,
        {"m": [user("a", name="Tom"), bot("b")]},
        ["[user]a^[assistant]«b^»"],
        "does not render name",
    ),
    "a thinking part": (
        FULL,
        {"m": [user("a"), bot([{"type": "thinking", "thinking": "r"}, {"type": "text", "text": "b"}])]},
        ["[user]a^[assistant]«(r)b^»"],
        "",
    ),
    "thoughts of earlier turns are dropped": (
        THINK,
        {"m": [user("a"), bot("b", reasoning_content="r"), user("c"), bot("d", reasoning_content="s")]},
        ["[user]a^[assistant]«(r)b^»", "[user]a^[assistant]b^[user]c^[assistant]«(s)d^»"],
        "became 2 examples",
    ),
    "turns after one question of the user stay together": (
        THINK,
        {"m": [user("a"), bot("b"), {"role": "tool", "content": "o"}, bot("d"), user("e"), bot("f")]},
        [
            "[user]a^[assistant]«()b^»[tool]o^[assistant]«()d^»",
            "[user]a^[assistant]b^[tool]o^[assistant]d^[user]e^[assistant]«()f^»",
        ],
        "became 2 examples",
    ),
    "generation marks": (
        MARKED,
        {"m": [user("a"), bot("b"), user("c"), bot("d")]},
        ["[user]a^[assistant]«b^»[user]c^[assistant]«d^»"],
        "",
    ),
    "a generation prompt that opens a thought": (OPENS, {"m": [user("a"), bot("b")]}, ["[user]a^[assistant]«b^»"], ""),
    "calls with arguments as JSON text": (
        FULL,
        {"m": [user("a"), bot(None, tool_calls=call('{"x": 1}')), {"role": "tool", "content": "o"}, bot("b")]},
        ["[user]a^[assistant]«<f=1>^»[tool]o^[assistant]«b^»"],
        "",
    ),
    "OpenAI's function_call": (
        FULL,
        {"m": [user("a"), bot(None, function_call={"name": "f", "arguments": '{"x": 1}'})]},
        ["[user]a^[assistant]«<f=1>^»"],
        "",
    ),
    "a column tools": (
        FULL,
        {"m": [user("a"), bot("b")], "tools": [{"name": "f"}]},
        ['[tools][{"name": "f"<unk>]^[user]a^[assistant]«b^»'],
        "",
    ),
    "a column tools that is not rendered": (
        PLAIN,
        {"m": [user("a"), bot("b")], "tools": [{"name": "f"}]},
        ["[user]a^[assistant]«b^»"],
        "does not render tools",
    ),
    "tools as JSON text": (
        FULL,
        {"m": [user("a"), bot("b")], "tools": '[{"name": "f"}]'},
        ['[tools][{"name": "f"<unk>]^[user]a^[assistant]«b^»'],
        "",
    ),
    "a column system": (PLAIN, {"m": [user("a"), bot("b")], "system": "s"}, ["[system]s^[user]a^[assistant]«b^»"], ""),
    "the same system message twice": (
        PLAIN,
        {"m": [{"role": "system", "content": "s"}, user("a"), bot("b")], "system": "s"},
        ["[system]s^[user]a^[assistant]«b^»"],
        "",
    ),
    "a column of images": (
        PLAIN,
        {"m": [user("a"), bot("b")], "images": ["x.png"]},
        ["[user]a^[assistant]«b^»"],
        "the column 'images' is left out",
    ),
    "variables of the template": (
        "{{ mood }}" + PLAIN,
        {"m": [user("a"), bot("b")], "chat_template_kwargs": {"mood": "y"}},
        ["y[user]a^[assistant]«b^»"],
        "",
    ),
    "an unknown role": (
        PLAIN,
        {"m": [{"role": "narrator", "content": "n"}, user("a"), bot("b")]},
        ["[narrator]n^[user]a^[assistant]«b^»"],
        "messages with the role 'narrator' go to the chat template and are not learnt",
    ),
    "a role that the template leaves out": (
        "{% for m in messages if m.role != 'system' %}[{{ m.role }}]{{ m.content }}^{% endfor %}" + ASKS,
        {"m": [{"role": "system", "content": "n"}, user("a"), bot("b")]},
        ["[user]a^[assistant]«b^»"],
        "does not render the content of messages with the role system",
    ),
    "thoughts of earlier turns under generation marks": (
        MARKED.replace(
            "{{ m.content }}^{% endgen",
            "{% if loop.last %}({{ m.reasoning_content }}){% endif %}{{ m.content }}^{% endgen",
        ),
        {"m": [user("a"), bot("b", reasoning_content="r1"), user("c"), bot("d", reasoning_content="r2")]},
        ["[user]a^[assistant]«b^»[user]c^[assistant]«(r2)d^»"],
        "leaves out reasoning_content of 1 messages",
    ),
    "a template that reads arguments as text": (
        FULL.replace("{{ c.function.arguments.x }}", "{{ '' + c.function.arguments }}"),
        {"m": [user("a"), bot(None, tool_calls=call({"x": 1}))]},
        ['[user]a^[assistant]«<f={"x": 1<unk>>^»'],
        "",
    ),
    "a null argument": (
        FULL,
        {"m": [user("a"), bot(None, tool_calls=call({"x": None}))]},
        ["[user]a^[assistant]«<f=None>^»"],
        "arguments that are null",
    ),
}


@pytest.mark.parametrize("name", READ)
def test_what_is_learnt_and_what_is_said(jsonl, name):
    template, row, texts, said = READ[name]
    learnt, notes = tokenized(jsonl, template, row)
    assert learnt == texts
    assert said in notes
    assert bool(notes) == bool(said)


def test_columns_of_other_names_and_none(jsonl):
    row = {"m": [user("a"), bot("b")], "system": "s", "functions": [{"name": "f"}]}
    assert tokenized(jsonl, FULL, row, system=False)[0] == ["[user]a^[assistant]«b^»"]
    texts, _ = tokenized(jsonl, FULL, row, tools="functions")
    assert texts == ['[tools][{"name": "f"<unk>]^[system]s^[user]a^[assistant]«b^»']


def test_keys_that_only_later_rows_have(jsonl):
    rows = [{"m": [user("a"), bot("b")]}, {"m": [user("a"), bot("b", reasoning_content="r")], "tools": [{"name": "f"}]}]
    texts, _ = tokenized(jsonl, FULL, *rows)
    assert texts == ["[user]a^[assistant]«b^»", '[tools][{"name": "f"<unk>]^[user]a^[assistant]«(r)b^»']


REFUSED = {
    "two system messages": (
        {"m": [{"role": "system", "content": "s"}, bot("b")], "system": "t"},
        "has a system message and 'system' has",
    ),
    "tools that are no JSON": ({"m": [bot("b")], "tools": "f(x)"}, "'tools' is text that is not JSON"),
    "a variable that is an argument": (
        {"m": [bot("b")], "chat_template_kwargs": {"tokenize": True}},
        "it has tokenize",
    ),
    "a call that is no JSON": (
        {"m": [{"from": "function_call", "value": "f(1)"}]},
        "function_call of message 1 is text that is not JSON",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_rows_that_are_refused(jsonl, name):
    row, problem = REFUSED[name]
    with pytest.raises(BALoraError, match="line 1") as error:
        tokenized(jsonl, PLAIN, row)
    assert problem in str(error.value)


def test_marks_that_do_not_fit_the_weights_are_refused(jsonl):
    two = MARKED.replace(
        "{{ m.content }}^{% endgeneration %}", "{{ m.content }}{% endgeneration %}{% generation %}^{% endgeneration %}"
    )
    with pytest.raises(BALoraError, match="marks 4 parts for 2 messages of the assistant"):
        tokenized(jsonl, two, {"m": [user("a"), bot("b"), user("c"), bot("d", weight=0)]})


def test_a_conversation_without_a_learnt_turn_is_left_out(jsonl):
    texts, notes = tokenized(jsonl, PLAIN, {"m": [user("a"), bot("b", weight=0)]}, {"m": [user("a"), bot("b")]})
    assert texts == ["[user]a^[assistant]«b^»"]
    assert "1 of 2 training rows were left out" in notes


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(90000) %}{% for j in range(90000) %}{% set x = j %}{% endfor %}{% endfor %}",
        "{{ 'x' * 40000000000 }}",
        "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% for i in range(90000) %}{% for j in range(90000) %}{{ messages[0].content }}{% endfor %}{% endfor %}",
        "{{ 3 ** (10 ** 9) }}",
        "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    ],
)
def test_a_template_that_loops_or_fills_the_memory_ends(jsonl, template, monkeypatch):
    monkeypatch.setattr(rendering, "SECONDS", 0.3)
    monkeypatch.setattr(rendering, "MEMORY", 2**28)
    with pytest.raises(BALoraError, match="chat template"):
        tokenized(jsonl, template, {"m": [user("a"), bot("b")]})


def test_a_template_that_raises_is_reported():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages[0].content + 1 }}"
    with pytest.raises(Unrenderable, match="the chat template fails on it: TypeError"):
        ChatEncoder(tokenizer).encode([user("a"), bot("b")])


def test_roles_of_other_names(jsonl):
    rows = [
        {
            "messages": [
                {"role": "Client", "content": "Hi."},
                {"role": "agent", "content": "Yes."},
                {"from": "bot", "value": "So."},
            ]
        }
    ]
    path = jsonl(rows)
    data = DataConfig(train=str(path), messages="messages", roles={"Client": "user", "agent": "assistant"})
    [row] = load_examples(data, "generation").train
    assert [message["role"] for message in row["messages"]] == ["user", "assistant", "assistant"]
    with pytest.raises(BALoraError, match=r"data\.roles says what they mean"):
        load_examples(
            DataConfig(train=str(jsonl([{"messages": rows[0]["messages"][:2]}])), messages="messages"), "generation"
        )
    with pytest.raises(ValueError, match="must map to system"):
        DataConfig(train="d", messages="m", roles={"agent": "asistant"})
