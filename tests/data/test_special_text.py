"""The text of special tokens in data is plain text; what a template writes is a token."""

from __future__ import annotations

import pytest
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from balora.config.run_config import DataConfig
from balora.data.examples import load_examples
from balora.data.prompts import bare_ids, encode_prompt
from balora.data.special_text import encode, find, mark, reader_of_marks, special_tokens, unmark
from balora.data.tokenize import tokenize_examples
from balora.evaluation.prompting import Prompting

SPECIAL = ["<unk>", "<s>", "</s>", "<|end|>"]
TEXTS = [
    "say </s> and <|end|> now, said he",
    "the end of it all </s>",
    "plain words",
    "<s>",
    "a<s>b",
    "x </s></s> y",
    " end  ",
]


def bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXTS * 9, trainers.BpeTrainer(vocab_size=330, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    return tokenizer


def bpe_that_ignores_merges() -> Tokenizer:
    """Like Llama 3's, which takes a word of the vocabulary as it is; the special tokens are in the vocabulary."""
    tokenizer = bpe()
    tokenizer.model.ignore_merges = True  # type: ignore[attr-defined]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return tokenizer


def sentencepiece_bpe() -> Tokenizer:
    """Like Llama 2's: spaces are letters, and the first word of a text gets one."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    letters = sorted({c for text in TEXTS for c in text.replace(" ", "▁")})
    tokenizer.train_from_iterator(
        TEXTS * 9, trainers.BpeTrainer(vocab_size=120, special_tokens=SPECIAL, initial_alphabet=letters)
    )
    return tokenizer


def unigram() -> Tokenizer:
    """Like T5's: special tokens are pieces of the model, which would be found in a text even without added tokens."""
    pieces = [(token, 0.0) for token in SPECIAL]
    pieces += [(letter, -5.0) for letter in sorted({c for text in TEXTS for c in text.replace(" ", "▁")} | {"▁"})]
    pieces += [("▁end", -4.0), ("▁and", -4.0), ("said", -4.5)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def wordpiece() -> Tokenizer:
    letters = sorted({c for text in TEXTS for c in text if c != " "})
    vocabulary = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters), "end"]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


MAKERS = [bpe, bpe_that_ignores_merges, sentencepiece_bpe, unigram, wordpiece]


def wrapped(make, *, ends: bool = False, strips: bool = False):
    tokenizer = make()
    if strips:
        tokenizer.add_special_tokens([AddedToken("<|end|>", lstrip=True, rstrip=True)])
    if ends:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("text", TEXTS)
def test_marked_text_has_no_special_tokens_and_keeps_its_characters(make, text):
    tokenizer = wrapped(make)
    marked = mark(tokenizer, text)
    assert unmark(tokenizer, marked) == text
    assert len(marked) == len(text)
    ids, offsets = encode(tokenizer, marked)
    assert not {tokenizer.convert_tokens_to_ids(name) for name in SPECIAL[1:]} & set(ids)
    assert len(ids) == len(offsets)
    kept = {at for start, end in offsets for at in range(start, end)}
    assert all(character.isspace() for at, character in enumerate(text) if at not in kept)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("strips", [False, True])
def test_what_a_template_writes_is_read_as_without_marks(make, strips):
    tokenizer = wrapped(make, strips=strips)
    for text in TEXTS:
        expected = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = encode(tokenizer, text + mark(tokenizer, " </s>"))
        same = expected["input_ids"]
        assert ids[: len(same)] == same
        assert offsets[: len(same)] == expected["offset_mapping"]


def test_private_characters_in_a_text_make_no_special_token():
    tokenizer = wrapped(bpe)
    names = special_tokens(tokenizer)
    hostile = (
        "".join(chr(0xF0000 + i) + chr(0xF0000) * (len(n) - 1) for i, n in enumerate(["?", *names]))
        + chr(0x100002)
        + "\U0010fffd" * 3
    )
    ids, _ = encode(tokenizer, mark(tokenizer, hostile + "</s>"))
    assert not {tokenizer.convert_tokens_to_ids(name) for name in SPECIAL} & set(ids)


def test_values_inside_lists_and_objects_are_marked():
    tokenizer = wrapped(bpe)
    value = {"a": ["</s>", 1, {"<s>": None}]}
    assert find(tokenizer, value) == {"</s>", "<s>"}
    assert not find(tokenizer, mark(tokenizer, value))


def labels_and_ids(data, task, tokenizer):
    tokens = tokenize_examples(load_examples(data, task), tokenizer, data, task)
    return tokens.train[0], " ".join(tokens.notes)


@pytest.mark.parametrize("make", MAKERS)
def test_prompts_responses_and_templates(jsonl, make):
    tokenizer = wrapped(make)
    end = tokenizer.convert_tokens_to_ids("</s>")
    data = DataConfig(
        train=jsonl({"q": "end</s>", "a": "he</s>said"}), prompt="q", response="a", prompt_template="</s>{prompt}"
    )
    row, said = labels_and_ids(data, "generation", tokenizer)
    assert row["input_ids"].count(end) == 2, "the template's and the end of the response"
    assert row["labels"].count(end) == 1
    assert "1 training row has the text of special tokens (</s>), which is read as plain text" in said
    prompting = Prompting("</s>{prompt}")
    prompt = prompting.tokens(tokenizer, prompting.text(tokenizer, "end</s>"))
    assert row["input_ids"][: len(prompt)] == prompt, "evaluation asks as training did"
    row, said = labels_and_ids(data.model_copy(update={"special_tokens": True}), "generation", tokenizer)
    assert row["input_ids"].count(end) == 4
    assert "which is read as these tokens (data.special_tokens)" in said


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("generation", [False, True])
def test_conversations(jsonl, make, generation):
    tokenizer = wrapped(make)
    begin, finish = ("{% generation %}", "{% endgeneration %}") if generation else ("", "")
    tokenizer.chat_template = (
        "{% for m in messages %}<|end|>{% if m.role == 'user' %}{{ m.content }}</s>"
        "{% else %}" + begin + "{{ m.content }}</s>" + finish + "{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|end|>{% endif %}"
    )
    talk = [{"role": "user", "content": "say </s>"}, {"role": "assistant", "content": "he <|end|>"}]
    data = DataConfig(train=jsonl({"m": talk}), messages="m")
    row, said = labels_and_ids(data, "generation", tokenizer)
    ends, marks = (tokenizer.convert_tokens_to_ids(name) for name in ("</s>", "<|end|>"))
    assert (row["input_ids"].count(ends), row["input_ids"].count(marks)) == (2, 2)
    assert row["labels"][-1] == ends
    assert "has the text of special tokens" in said
    first = next(at for at, label in enumerate(row["labels"]) if label >= 0)
    assert row["input_ids"][first - 1] == marks
    chat = Prompting("chat")
    assert chat.tokens(tokenizer, chat.chat(tokenizer, talk[:1])) == row["input_ids"][:first]


def test_a_token_by_which_the_template_divides_a_text_stays_a_token(jsonl):
    tokenizer = wrapped(bpe)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if '<|end|>' in m.content %}({{ m.content.split('<|end|>')[0] }}<|end|>"
        "{{ m.content.split('<|end|>')[1] }}{% else %}{{ m.content }}{% endif %}</s>{% endfor %}"
    )
    talk = [{"role": "user", "content": "</s>"}, {"role": "assistant", "content": "he <|end|> said"}]
    row, said = labels_and_ids(DataConfig(train=jsonl({"m": talk}), messages="m"), "generation", tokenizer)
    assert row["input_ids"].count(tokenizer.convert_tokens_to_ids("<|end|>")) == 1
    assert row["input_ids"].count(tokenizer.convert_tokens_to_ids("</s>")) == 2
    assert "the chat template itself reads <|end|> in a text" in said


@pytest.mark.parametrize("make", MAKERS)
def test_classified_texts(jsonl, make):
    tokenizer = wrapped(make, ends=True)
    rows = [{"a": f"the end </s> {'said ' * i}", "b": "</s> he", "y": "ab"[i % 2]} for i in range(4)]
    data = DataConfig(train=jsonl(*rows), text=("a", "b"), label="y", max_length=24)
    tokens = tokenize_examples(load_examples(data, "classification"), tokenizer, data, "classification")
    for row in tokens.train:
        assert row["input_ids"].count(2) == 2, "the tokenizer's own"
        assert (row["input_ids"][0], row["input_ids"][-1]) == (1, 2)
        assert len(row["input_ids"]) <= 24
    assert "4 training rows have the text of special tokens" in " ".join(tokens.notes)


@pytest.mark.parametrize("make", MAKERS)
def test_texts_of_encoder_and_decoder(jsonl, make):
    tokenizer = wrapped(make, ends=True)
    data = DataConfig(
        train=jsonl({"q": "the </s> end", "a": "</s> he"}), prompt="q", response="a", prompt_template="<|end|>{prompt}"
    )
    row, _ = labels_and_ids(data, "seq2seq", tokenizer)
    assert (row["input_ids"].count(2), row["labels"].count(2)) == (1, 1)
    assert row["input_ids"].count(3) == 1, "the template's"


def test_text_without_special_tokens_is_read_as_before():
    tokenizer = wrapped(bpe)
    assert encode_prompt(tokenizer, mark(tokenizer, "plain words")) == bare_ids(tokenizer, ["plain words"])[0]


def test_a_slow_tokenizer():
    tokenizer = transformers.ByT5Tokenizer()
    ids, _ = encode(tokenizer, "</s>x" + mark(tokenizer, "a</s>"))
    assert ids == [1, *(3 + byte for byte in b"xa</s>")]
    reader, texts = reader_of_marks(tokenizer, [mark(tokenizer, "a</s>")])
    assert reader(texts)["input_ids"] == [[*(3 + byte for byte in b"a</s>"), 1]]
    assert tokenizer("a</s>")["input_ids"] == [100, 1], "the original still reads it as the token"


@pytest.mark.parametrize(("target", "language"), [(False, "eng_Latn"), (True, "fra_Latn")])
def test_the_language_of_either_side_stays(target, language):
    letters = dict.fromkeys(["<s>", "<pad>", "</s>", "<unk>", "▁", *"abs</>"])
    tokenizer = transformers.NllbTokenizer(
        vocab={piece: number for number, piece in enumerate(letters)},
        merges=[],
        src_lang="eng_Latn",
        tgt_lang="fra_Latn",
    )
    reader, texts = reader_of_marks(tokenizer, [mark(tokenizer, "a</s>b")], target=target)
    (ids,) = reader(**{"text_target" if target else "text": texts})["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == [language, "▁", "a", "<", "/", "s", ">", "b", "</s>"]
    assert tokenizer.convert_ids_to_tokens(tokenizer("ab")["input_ids"])[0] == "eng_Latn"
