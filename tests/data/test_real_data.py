"""Every available real data set is loaded, and some rows are tokenized with real tokenizers."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from balora.config.run_config import RunConfig
from balora.data.collate import make_collator
from balora.data.examples import load_examples
from balora.data.files.readers import read_table
from balora.data.tokenize import tokenize_examples

PAIR = {"prompt": "question", "response": "answer"}
TEXTS = ["sentence1", "sentence2"]


def load(shared: Path, task: str, **data):
    config = RunConfig.from_dict(
        {"model": "m", "task": task, "output": "o", "data": {**data, "train": str(shared / "data" / data["train"])}}
    )
    return config.data, load_examples(config.data, task)


@pytest.mark.parametrize(
    ("task", "data", "rows", "labels"),
    [
        ("generation", {"train": "gsm8k", "eval": "test", **PAIR}, (7473, 1319), None),
        ("generation", {"train": "gsm8k/train.jsonl", "split": "[:100]", "eval": 0.1, **PAIR}, (90, 10), None),
        ("generation", {"train": "math", "prompt": "problem", "response": "solution"}, (500, 0), None),
        (
            "generation",
            {"train": "humaneval/HumanEval.jsonl", "prompt": "prompt", "response": "canonical_solution"},
            (164, 0),
            None,
        ),
        (
            "generation",
            {"train": "mbpp/mbpp.jsonl", "split": "train[10:510]", "prompt": "text", "response": "code"},
            (500, 0),
            None,
        ),
        (
            "generation",
            {
                "train": "instruct/llamafactory_alpaca_en_demo.json",
                "prompt": "instruction",
                "input": "input",
                "response": "output",
                "prompt_template": "alpaca",
            },
            (999, 0),
            None,
        ),
        ("generation", {"train": "crows_pairs", "text": "sent_more"}, (1508, 0), None),
        ("generation", {"train": "mt_bench/reference_answer_gpt-4.jsonl", "text": "answer_id"}, (30, 0), None),
        (
            "seq2seq",
            {"train": "g2p/pairs.jsonl", "eval": 0.05, "prompt": "word", "response": "phonemes"},
            (19000, 1000),
            None,
        ),
        (
            "classification",
            {"train": "glue/CoLA", "eval": "dev", "text": "sentence", "label": "label"},
            (8551, 1043),
            ("0", "1"),
        ),
        (
            "classification",
            {
                "train": "glue/SST-2",
                "split": "train[:8000]",
                "eval": "dev",
                "text": "sentence",
                "label": "label",
                "labels": ["negative", "positive"],
            },
            (8000, 872),
            ("negative", "positive"),
        ),
        (
            "classification",
            {"train": "glue/RTE", "eval": "validation", "text": TEXTS, "label": "label"},
            (2490, 277),
            ("entailment", "not_entailment"),
        ),
        ("regression", {"train": "glue/STS-B", "eval": "dev", "text": TEXTS, "score": "score"}, (5749, 1500), None),
    ],
    ids=lambda value: value["train"] if isinstance(value, dict) else "",
)
def test_every_real_data_set_loads(shared_dir, task, data, rows, labels):
    _, examples = load(shared_dir, task, **data)
    assert (len(examples.train), len(examples.eval or ())) == rows
    assert examples.label_names == labels


@pytest.mark.parametrize(
    ("name", "rows"), [("CoLA/train", 8551), ("SST-2/train", 67349), ("RTE/train", 2490), ("STS-B/train", 5749)]
)
def test_no_row_of_glue_is_lost(shared_dir, name, rows):
    """Check the number of rows: with CSV quoting, 38 rows of STS-B would become part of other rows."""
    table = read_table(shared_dir / "data" / "glue" / f"{name}.tsv")
    assert len(table.rows) == rows
    if name.startswith("STS-B"):
        with (shared_dir / "data" / "glue" / f"{name}.tsv").open(newline="", encoding="utf-8") as lines:
            assert len(list(csv.reader(lines, delimiter="\t"))) - 1 == rows - 38


def test_question_and_answer_with_a_real_tokenizer(shared_dir, stories):
    data, examples = load(shared_dir, "generation", train="gsm8k/train.jsonl", split="[:50]", **PAIR)
    tokenizer = AutoTokenizer.from_pretrained(stories)
    tokens = tokenize_examples(examples, tokenizer, data, "generation", max_positions=512)
    for row in tokens.train:
        learnt = tokenizer.decode([label for label in row["labels"] if label != -100])
        text = tokenizer.decode(row["input_ids"])
        assert row["input_ids"][0] == tokenizer.bos_token_id
        assert len(row["input_ids"]) <= 512
        assert text.endswith(learnt)
        assert row["input_ids"][-1] == tokenizer.eos_token_id or len(row["input_ids"]) == 512
    first = examples.train[0]
    assert text != first["prompt"]
    row = tokens.train[0]
    assert tokenizer.decode([x for x in row["labels"] if x != -100]) == first["response"] + "</s>"
    assert tokenizer.decode(row["input_ids"]) == f"<s> {first['prompt']}\n{first['response']}</s>"


def test_the_spelling_model_sees_the_format_of_its_training(shared_dir):
    """Check that labels keep their leading <s>; without it the loss on the training data is thirty times as large."""
    folder = shared_dir / "models" / "bart-g2p"
    data, examples = load(
        shared_dir, "seq2seq", train="g2p/pairs.jsonl", split="[:64]", prompt="word", response="phonemes",
        target_tokenizer=str(folder / "target"),
    )  # fmt: skip
    source, target = (AutoTokenizer.from_pretrained(path) for path in (folder, folder / "target"))
    tokens = tokenize_examples(examples, source, data, "seq2seq", target_tokenizer=target)
    assert all(row["labels"][0] == 1 and row["labels"][-1] == 2 for row in tokens.train)
    assert 3 not in {token for row in tokens.train for token in row["labels"]}, "no unknown phoneme"
    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    batch = make_collator("seq2seq", source, model)(tokens.train.to_list())
    labels = batch.pop("labels")
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(model(**batch).logits.flatten(0, 1), labels.flatten())
    assert loss < 0.2
