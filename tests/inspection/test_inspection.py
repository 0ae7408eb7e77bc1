"""`balora inspect`: what it counts and shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from balora.config.run_config import RunConfig
from balora.data.collate import IGNORED
from balora.data.examples import load_examples
from balora.data.tokenize import tokenize_examples
from balora.inspection.inspect import inspect
from balora.inspection.page import write_inspection
from balora.inspection.pieces import split_tokens
from balora.inspection.text import as_lines
from balora.loading.pretrained import load_tokenizer
from balora.loading.source import ModelSource
from command import Command
from tiny import tiny_bert, tiny_tokenizer


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def configured(model: Path, train: str, task: str = "generation", **data) -> RunConfig:
    return RunConfig.from_dict({"model": str(model), "task": task, "output": "o", "data": {"train": train, **data}})


PAIRS = [
    {"q": "one?", "a": "first"},
    {"q": "two?", "a": "second"},
    {"q": "one?", "a": "first"},  # equal to row 1
    {"q": " ONE?", "a": "other"},  # contradicts row 1
    {"q": "x" * 60, "a": "long prompt"},  # left out
    {"q": "short", "a": "y" * 60},  # cut
]


@pytest.fixture
def pairs(tmp_path: Path, model_dir: Path) -> RunConfig:
    evaluation = write(tmp_path / "eval.jsonl", [PAIRS[1], {"q": "TWO?", "a": "new"}, {"q": "free", "a": "new"}])
    train = write(tmp_path / "train.jsonl", PAIRS)
    return configured(model_dir, train, prompt="q", response="a", eval=evaluation, max_length=40)


def test_rows_are_counted_by_what_happens_to_them(pairs: RunConfig) -> None:
    found = inspect(pairs)
    train = found.train
    assert (train.rows, train.examples, len(train.lengths)) == (6, 5, 6)
    [(why, left_out)] = train.left_out.items()
    assert "prompt alone fills 40 tokens (data.max_length)" in why
    assert left_out.places == ["training row 5"]
    [(why, cut)] = train.cut.items()
    assert "longer than 40 tokens" in why
    assert cut.places == ["training row 6"]
    assert train.identical.places == ["training row 3"]
    assert train.contradicting.places == ["training row 4"]
    assert found.overlap.places == ["evaluation row 1"]
    assert found.similar.places == ["evaluation row 2"]
    assert [shown.place for shown in train.odd] == ["training row 5", "training row 6"]


def test_the_tokens_are_those_of_the_training(pairs: RunConfig) -> None:
    tokenizer = load_tokenizer(ModelSource.from_config(pairs))
    examples = load_examples(pairs.data, pairs.task, pairs.seed)
    rows = tokenize_examples(examples, tokenizer, pairs.data, pairs.task).train
    found = inspect(pairs, rows=2)
    for shown, row in zip(found.train.shown, rows, strict=False):
        assert [token for piece in shown.pieces for token in piece.ids] == row["input_ids"]
        learnt = [piece.learnt for piece in shown.pieces for _ in piece.ids]
        assert learnt == [label != IGNORED for label in row["labels"]]
    assert found.train.tokens == sum(map(len, rows["input_ids"]))
    assert found.train.learnt == sum(label != IGNORED for row in rows["labels"] for label in row)


def test_a_row_of_ones_choice_is_shown(pairs: RunConfig) -> None:
    [shown] = inspect(pairs, rows=1, first=2).train.shown
    assert shown.place == "training row 2"
    # The tiny tokenizer has no decoder, so transformers puts a space between its tokens.
    assert "".join(piece.text for piece in shown.pieces if piece.learnt).replace(" ", "") == "second</s>"


def test_classes_are_counted(tmp_path: Path) -> None:
    tiny_bert().save_pretrained(tmp_path / "bert")
    tiny_tokenizer().save_pretrained(tmp_path / "bert")
    rows = [{"text": f"t{n}", "label": ("bad", "good", "good")[n % 3]} for n in range(9)]
    found = inspect(
        configured(tmp_path / "bert", write(tmp_path / "t.jsonl", rows), "classification", text="text", label="label")
    )
    assert found.train.labels == {"good": 6, "bad": 3}
    assert found.train.shown[0].target == "bad"
    text = "\n".join(as_lines(found, encoding="ascii"))
    assert "66.7% ####" in text
    assert "No rows are kept for evaluation" in text


def test_lines_fit_the_screen_and_say_what_is_learnt(pairs: RunConfig) -> None:
    found = inspect(pairs)
    lines = list(as_lines(found, width=80))
    assert max(len(line) for line in lines if "/" not in line) <= 80  # a path is not broken
    assert "  |  f i r s t </s>" in lines
    assert "\x1b" not in "".join(lines)
    coloured = "\n".join(as_lines(found, width=80, colour=True))
    assert "\x1b[32m f i r s t </s>" in coloured


def test_control_characters_of_data_do_not_reach_the_screen(tmp_path: Path, model_dir: Path) -> None:
    path = write(tmp_path / "t.jsonl", [{"q": "a", "a": "b"}])
    found = inspect(configured(model_dir, path, prompt="q", response="a"))
    piece = found.train.shown[0].pieces[0]
    object.__setattr__(piece, "text", "\x1b[2J")
    assert "\\x1b[2J" in "\n".join(as_lines(found))


def test_the_page_escapes_the_data_and_marks_the_tokens(pairs: RunConfig, tmp_path: Path) -> None:
    page = write_inspection(inspect(pairs), tmp_path / "page.html").read_text()
    assert "&lt;/s&gt;" in page
    assert '<span class="t l"' in page
    assert "training row 5" in page


def test_pieces_join_to_the_text_and_complete_characters() -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_tokenizer = Tokenizer(models.BPE(vocab={token: at for at, token in enumerate(alphabet)}, merges=[]))
    bytes_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_tokenizer.decoder = decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=bytes_tokenizer)
    text = "né 日本 🙂."
    ids = tokenizer(text)["input_ids"]
    pieces = split_tokens(tokenizer, ids, [IGNORED] * 3 + ids[3:])
    assert "".join(piece.text for piece in pieces) == text
    assert [token for piece in pieces for token in piece.ids] == ids
    assert [piece.text for piece in pieces][:3] == ["n", "é", " "]
    assert [piece.learnt for piece in pieces][:4] == [False, False, True, True]


def test_the_command_writes_a_page(balora: Command, config: Path, tmp_path: Path) -> None:
    outcome = balora("inspect", config, "--html", tmp_path / "new" / "page.html", "--rows", "1")
    assert outcome.status == 0, outcome.err
    assert "Training: 24 rows" in outcome.out
    assert "Wrote" in outcome.out
    assert (tmp_path / "new" / "page.html").is_file()
