"""Conversations: only the assistant's messages are learnt, with templates of several styles."""

from __future__ import annotations

import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from balora.config.run_config import DataConfig
from balora.data.conversations.chat import ChatEncoder
from balora.data.examples import load_examples
from balora.data.tokenize import tokenize_examples
from balora.errors import BALoraError
from tiny import tiny_tokenizer

ASKS = "{% if add_generation_prompt %}[assistant]{% endif %}"
SIMPLE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}^{% endfor %}" + ASKS
# Like Llama 2: no mark before the assistant's messages, no generation prompt, an end token only after them.
LLAMA = (
    "{% for m in messages %}{% if m.role == 'user' %}[I]{{ m.content }}[/I]"
    "{% else %}{{ m.content }}|{% endif %}{% endfor %}"
)
# Like Qwen 3: only the last message keeps its thoughts.
FORGETS = (
    "{% for m in messages %}[{{ m.role }}]{% if loop.last or m.role == 'user' %}{{ m.content }}"
    "{% else %}{{ m.content.split('#')[-1] }}{% endif %}^{% endfor %}" + ASKS
)
STRICT = "{% if messages[0].role != 'user' %}{{ raise_exception('a user must begin') }}{% endif %}" + SIMPLE
TALK = [
    {"role": "system", "content": "be nice"},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": "bye"},
    {"role": "assistant", "content": "ciao"},
]


def chatty(template: str):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def learnt(tokenizer, messages) -> tuple[str, list[str]]:
    """Return the rendered text, and the parts of it that are learnt."""
    [(ids, mask)] = ChatEncoder(tokenizer).encode(messages)
    text = "".join(tokenizer.convert_ids_to_tokens(ids))
    parts, run = [], ""
    for token, is_learnt in [*zip(text, mask, strict=True), ("", False)]:
        if is_learnt:
            run += token
        elif run:
            parts.append(run)
            run = ""
    return text, parts


def test_only_the_assistants_messages_and_end_of_turn_are_learnt():
    text, parts = learnt(chatty(SIMPLE), TALK)
    assert text == "[system]be nice^[user]hi^[assistant]hello^[user]bye^[assistant]ciao^"
    assert parts == ["hello^", "ciao^"]


def test_a_template_without_a_generation_prompt():
    text, parts = learnt(chatty(LLAMA), TALK[1:])
    assert text == "[I]hi[/I]hello|[I]bye[/I]ciao|"
    assert parts == ["hello|", "ciao|"]


def test_a_conversation_that_begins_with_the_assistant():
    assert learnt(chatty(SIMPLE), TALK[2:])[1] == ["[assistant]hello^", "ciao^"]


def test_the_conversation_is_tokenized_in_one_piece():
    pieces = ["<unk>", "</s>", *"[]^abehilnorstuy cm", "lo", "ello", "^["]
    merges = [("l", "o"), ("l", "lo"), ("e", "llo"), ("^", "[")]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys([*pieces, "llo"]))}
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>"))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.Split("\x00", "isolated"), decoders.Fuse()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="</s>")
    tokenizer.chat_template = SIMPLE
    talk = [("user", "hi"), ("assistant", "hello"), ("user", "hi"), ("assistant", "h")]
    [(ids, mask)] = ChatEncoder(tokenizer).encode([{"role": role, "content": content} for role, content in talk])
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert [token for token, is_learnt in zip(tokens, mask, strict=True) if is_learnt] == ["h", "ello", "^[", "h", "^"]


def test_rows_become_tokens_and_labels(jsonl):
    tokenizer = chatty(SIMPLE)
    data = DataConfig(train=jsonl({"m": TALK}, {"m": TALK[1:3]}), messages="m", max_length=30)
    tokens = tokenize_examples(load_examples(data, "generation"), tokenizer, data, "generation")
    assert len(tokens.train) == 1, "the first has no target within 30 tokens"
    row = tokens.train[0]
    assert [label for label in row["labels"] if label != -100] == tokenizer("hello^", add_special_tokens=False)[
        "input_ids"
    ]
    assert "1 of 2 training rows were left out" in tokens.notes[0]


def test_a_conversation_that_the_template_refuses_is_reported_by_line(jsonl):
    path = jsonl({"m": TALK[1:3]}, {"m": TALK})
    data = DataConfig(train=path, messages="m")
    with pytest.raises(BALoraError) as error:
        tokenize_examples(load_examples(data, "generation"), chatty(STRICT), data, "generation")
    assert str(error.value) == (
        f"A row of the data cannot be used. {path} line 2: the chat template refuses it (a user must begin)."
    )


def test_a_template_that_rewrites_earlier_turns_makes_one_example_of_each_turn(jsonl):
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "well#hello"}, *TALK[3:]]
    tokenizer = chatty(FORGETS)
    data = DataConfig(train=jsonl({"m": talk}), messages="m")
    tokens = tokenize_examples(load_examples(data, "generation"), tokenizer, data, "generation")
    texts = ["".join(tokenizer.convert_ids_to_tokens(row["input_ids"])) for row in tokens.train]
    learnt = ["".join(tokenizer.convert_ids_to_tokens([i for i in r["labels"] if i >= 0])) for r in tokens.train]
    assert texts == ["[user]hi^[assistant]well#hello^", "[user]hi^[assistant]hello^[user]bye^[assistant]ciao^"]
    assert learnt == ["well#hello^", "ciao^"]
    assert "earlier turns of 1 training conversations differently" in tokens.notes[0]
    assert "became 2 examples" in tokens.notes[0]


def test_a_tokenizer_without_a_template(jsonl):
    data = DataConfig(train=jsonl({"m": TALK}), messages="m")
    with pytest.raises(BALoraError, match=r"has no chat template, so data\.messages cannot be rendered"):
        tokenize_examples(load_examples(data, "generation"), tiny_tokenizer(), data, "generation")
