"""Small substitutes for what the recipes name: datasets with the hub's columns and classes, and a tiny model of each family."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from pathlib import Path

import datasets
import sentencepiece
import transformers
from tokenizers.processors import TemplateProcessing

from tiny import tiny_causal, tiny_llama, tiny_roberta, tiny_t5, tiny_tokenizer

WORDS = [
    "the",
    "cat",
    "saw",
    "a",
    "small",
    "red",
    "bird",
    "near",
    "old",
    "houses",
    "where",
    "men",
    "sold",
    "green",
    "tea",
]
GLUE = {
    "mnli": (("premise", "hypothesis"), ("entailment", "neutral", "contradiction")),
    "sst2": (("sentence",), ("negative", "positive")),
    "mrpc": (("sentence1", "sentence2"), ("not_equivalent", "equivalent")),
    "cola": (("sentence",), ("unacceptable", "acceptable")),
    "qnli": (("question", "sentence"), ("entailment", "not_entailment")),
    "qqp": (("question1", "question2"), ("not_duplicate", "duplicate")),
    "rte": (("sentence1", "sentence2"), ("entailment", "not_entailment")),
    "stsb": (("sentence1", "sentence2"), None),
}
"""Columns and classes of nyu-mll/glue, the classes in the order of their numbers."""
SPLITS = {"mnli": ("train", "validation_matched", "validation_mismatched")}


def load_dataset(name: str, configuration: str | None, *, split: str) -> datasets.Dataset:
    """As `datasets.load_dataset`, over rows made up here; what the hub does not have, this has not either."""
    names = [part.partition("[")[0] for part in split.split("+")]
    known = SPLITS.get(configuration, ("train", "validation")) if name == "nyu-mll/glue" else ("train",)
    if not set(names) <= set(known):
        raise ValueError(f"Unknown split {split!r}. Should be one of {known}.")
    draw = random.Random(f"{name} {configuration} {split}")
    if name == "nyu-mll/glue":
        return _glue(configuration, draw)
    rows = [_PAIRS[name](_sentence(draw), _sentence(draw)) for _ in range(24)]
    return datasets.Dataset.from_list(rows)


_PAIRS: dict[str, Callable[[str, str], dict]] = {
    "meta-math/MetaMathQA": lambda q, a: {"type": "GSM_SV", "query": q, "original_question": q, "response": a},
    "m-a-p/CodeFeedback-Filtered-Instruction": lambda q, a: {
        "query": q,
        "answer": a,
        "resource": "x",
        "lang": "python",
    },
    "WizardLMTeam/WizardLM_evol_instruct_V2_196k": lambda q, a: {
        "idx": "0",
        "conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}],
    },
}


def _glue(task: str, draw: random.Random) -> datasets.Dataset:
    columns, classes = GLUE[task]
    label = datasets.ClassLabel(names=list(classes)) if classes else datasets.Value("float32")
    features = {
        **{column: datasets.Value("string") for column in columns},
        "label": label,
        "idx": datasets.Value("int32"),
    }
    rows = [
        {
            **{column: _sentence(draw) for column in columns},
            "label": number % len(classes) if classes else draw.random() * 5,
            "idx": number,
        }
        for number in range(24)
    ]
    return datasets.Dataset.from_list(rows, features=datasets.Features(features))


def _sentence(draw: random.Random) -> str:
    return " ".join(draw.choices(WORDS, k=4))


FAMILIES = {
    "meta-llama/Llama-2-7b-hf": "llama",
    "meta-llama/Llama-2-13b-hf": "llama",
    "meta-llama/Meta-Llama-3-8B": "llama",
    "meta-llama/Meta-Llama-3-70B": "llama",
    "mistralai/Mistral-7B-v0.1": "Mistral",
    "mistralai/Mixtral-8x7B-v0.1": "Mixtral",
    "google/gemma-7b": "Gemma",
    "Qwen/Qwen1.5-7B": "Qwen2",
    "01-ai/Yi-1.5-34B": "llama",
    "deepseek-ai/deepseek-moe-16b-base": "llama",  # transformers has no such model; its own code has these layer names
    "microsoft/deberta-v3-base": "deberta",
    "FacebookAI/roberta-base": "roberta",
    "google-t5/t5-base": "t5",
}
"""Every model that a recipe names, by its id on the hub."""


def save_stand_in(family: str, folder: Path) -> None:
    """A tiny model of a family with a tokenizer of its kind."""
    _MODELS[family]().save_pretrained(folder)
    if family == "deberta":
        _spm_tokenizer(folder)
        return
    tokenizer = tiny_tokenizer()
    if family == "t5":  # ends every text, as the real one does
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    tokenizer.save_pretrained(folder)


def _tiny_deberta() -> transformers.DebertaV2ForSequenceClassification:
    config = transformers.DebertaV2Config(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0,
        relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=16, norm_rel_ebd="layer_norm",
        share_att_key=True, position_biased_input=False, type_vocab_size=0, max_position_embeddings=512,
    )  # fmt: skip
    return transformers.DebertaV2ForSequenceClassification(config)


_MODELS = {
    "llama": functools.partial(tiny_llama, seed=0),
    "deberta": _tiny_deberta,
    "roberta": tiny_roberta,
    "t5": tiny_t5,
    **{family: functools.partial(tiny_causal, family) for family in ("Mistral", "Mixtral", "Gemma", "Qwen2")},
}


def _spm_tokenizer(folder: Path) -> None:
    """DeBERTa-v3's tokenizer lies on the hub as a sentencepiece model alone."""
    lines = folder / "lines.txt"
    lines.write_text("\n".join(" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))))
    sentencepiece.SentencePieceTrainer.train(
        input=str(lines), model_prefix=str(folder / "spm"), vocab_size=40, hard_vocab_limit=False,
        pad_id=0, bos_id=1, eos_id=2, unk_id=3,
        pad_piece="[PAD]", bos_piece="[CLS]", eos_piece="[SEP]", unk_piece="[UNK]", minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false, "vocab_type": "spm"}')
