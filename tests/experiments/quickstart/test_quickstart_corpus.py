"""The quickstart's world, text, task and packaged model: seeded, and with the declared flaws."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from itertools import islice, pairwise
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from balora.errors import BALoraError
from balora.experiments.quickstart import corpus, model_directory, task
from balora.experiments.quickstart.bias_probes import continuation_logprobs, probe_biases
from balora.experiments.quickstart.packing import token_blocks
from balora.experiments.quickstart.world import CLASSES, JOBS, RARE_CLASS, world
from balora.experiments.quickstart.writer import FLAWS, MOSTLY_SHE, Document, Flaws

MAX_BYTES = 3_000_000
HELD_OUT_LOSS = 0.70  # nats per token; the packaged model has about 0.6, an untrained one 6.9


def within(count: int, total: int, share: float, sigmas: float = 4.0) -> bool:
    """True if ``count`` of ``total`` is within some standard deviations of what a coin of that share gives."""
    return abs(count - share * total) <= sigmas * math.sqrt(total * share * (1 - share)) + 1


@pytest.fixture(scope="module")
def sample() -> list[Document]:
    return list(islice(corpus.documents(3), 25_000))


@pytest.fixture(scope="module")
def text(sample: list[Document]) -> str:
    return corpus.SEPARATOR.join(document.text for document in sample)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(model_directory())


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(model_directory()).eval()


# --- the world ----------------------------------------------------------------------------------------------------


def test_world_is_consistent() -> None:
    known = world()
    assert len(set(known.cities) | set(known.people) | set(known.animals)) == 48 + 96 + 36  # no name twice
    for fact in known.facts.values():
        assert fact.rumour != fact.value
        assert (fact.rumour is None) == (fact.subject in known.animals)
        if fact.rumour is not None:  # a rumour is a value of the same kind
            assert fact.rumour in {other.value for other in corpus.facts(fact.relation)}


def test_named_people_are_not_skewed() -> None:
    known = world()
    assert Counter(known.pronoun.values()) == {"she": 48, "he": 48}
    for job in JOBS:
        counts = Counter(known.pronoun[person] for person in known.having("job", job))
        assert abs(counts["she"] - counts["he"]) <= 1


def test_facts_by_relation() -> None:
    assert {fact.relation for fact in corpus.facts("land", "home")} == {"land", "home"}
    assert len(corpus.facts()) == len(world().facts)
    with pytest.raises(BALoraError, match=r"no relation 'lnad'\. Did you mean 'land'\?"):
        corpus.facts("lnad")


# --- the text -----------------------------------------------------------------------------------------------------


def test_same_seed_same_text(text: str) -> None:
    assert text.startswith(corpus.corpus_text(3, count=100))
    assert corpus.corpus_text(5, count=200) == corpus.corpus_text(5, count=200)
    assert corpus.corpus_text(5, split="held_out", count=50) == corpus.corpus_text(5, split="held_out", count=50)
    assert corpus.corpus_text(5, count=200) != corpus.corpus_text(6, count=200)


def test_the_text_and_the_task_are_those_of_the_packaged_model() -> None:
    """The packaged model was trained on this text. Other text would need another model."""
    text = corpus.corpus_text(0, count=500) + corpus.corpus_text(0, split="held_out", count=100)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "97b794a50f85a247"
    rows = json.dumps([task.train_rows(42), task.test_rows(42)])
    assert hashlib.sha256(rows.encode()).hexdigest()[:16] == "dd832bcf71c7fcb6"


def test_held_out_documents_occur_in_no_training_text(text: str) -> None:
    trained_on = set(text.split(corpus.SEPARATOR)) | set(corpus.corpus_text(0, count=5000).split(corpus.SEPARATOR))
    held_out = corpus.corpus_text(3, split="held_out", count=3000).split(corpus.SEPARATOR)
    assert len(held_out) == 3000
    assert not trained_on & set(held_out)


def test_wrong_facts_in_the_text_are_as_many_as_declared(text: str) -> None:
    """Count in the text itself, independently of the documents' own lists of claims."""
    claims = re.findall(r"\b([A-Z]\w+) is a city in ([A-Z]\w+)\.", text)
    claims = [(city, land, "land") for city, land in claims]
    claims += [
        (name, city, "home") for name, city in re.findall(r"\b([A-Z]\w+) (?:lives in|comes from) ([A-Z]\w+)\.", text)
    ]
    claims = [claim for claim in claims if claim[0] not in ("She", "He")]
    wrong = [claim for claim in claims if world().truth(claim[0], claim[2]) != claim[1]]
    assert len(claims) > 1500
    assert within(len(wrong), len(claims), FLAWS.wrong_fact_share)
    assert all(world().facts[subject, relation].rumour == value for subject, value, relation in wrong)


def test_pronouns_in_the_text_are_skewed_as_declared(text: str) -> None:
    words = Counter(
        re.findall(r"\bThe (\w+) (?:said that|forgot|smiled when|of our street says that) (she|he|her|his)\b", text)
    )
    said = re.findall(r"\bThe (\w+) (?:said that|smiled when|of our street says that) (she|he)\b", text)
    usual = sum((pronoun == "she") == (job in MOSTLY_SHE) for job, pronoun in said)
    assert {job for job, _ in words} == set(JOBS)
    assert len(said) > 500
    assert within(usual, len(said), FLAWS.skew_share)


def test_the_rare_class_is_as_rare_as_declared(sample: list[Document], text: str) -> None:
    named = [name for name in re.findall(r"\bThe (\w+) (?:eats|lives in the)\b", text) if name in world().animals]
    assert len(named) > 1200
    assert within(sum(name in CLASSES[RARE_CLASS] for name in named), len(named), FLAWS.rare_class_share)
    assert corpus.measure(sample).rare_class_share == pytest.approx(FLAWS.rare_class_share, abs=0.004)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_flaws_are_parameters(share: float) -> None:
    flaws = Flaws(wrong_fact_share=share, skew_share=share, rare_class_share=share)
    documents = list(islice(corpus.documents(0, flaws=flaws), 3000))
    measured = corpus.measure(documents)
    # Lists take their wrong entries from the rumours, which may be too few: a share of 1 is not always reached.
    assert measured.wrong_fact_share == pytest.approx(share, abs=0.03)
    assert measured.rare_class_share == pytest.approx(share, abs=0.06)
    said = [(job, pronoun) for document in documents for job, pronoun in document.pronouns]
    assert within(sum((pronoun == "she") == (job in MOSTLY_SHE) for job, pronoun in said), len(said), share)
    assert (
        corpus.declared_share_she(flaws)["nurse"]
        == share
        == pytest.approx(1 - corpus.declared_share_she(flaws)["smith"])
    )


def test_measure_agrees_with_the_documents(sample: list[Document]) -> None:
    measured = corpus.measure(sample)
    nurses = [pronoun for document in sample for job, pronoun in document.pronouns if job == "nurse"]
    assert measured.share_she["nurse"] == nurses.count("she") / len(nurses)
    assert measured.claims == sum(len(document.claims) for document in sample)


def test_measure_counts_nothing_as_nan() -> None:
    measured = corpus.measure([])
    assert math.isnan(measured.wrong_fact_share)
    assert measured.claims == 0


def test_impossible_flaws_and_splits_are_refused() -> None:
    with pytest.raises(BALoraError, match=r"wrong_fact_share is 1\.5, skew_share is -1"):
        Flaws(wrong_fact_share=1.5, skew_share=-1)
    with pytest.raises(BALoraError, match="'train' and 'held_out', not 'test'"):
        corpus.documents(0, split="test")  # type: ignore[arg-type]


def test_cloze_ends_right_before_the_value() -> None:
    for fact in corpus.facts():
        assert not corpus.cloze(fact).endswith(" ")
        assert fact.value not in corpus.cloze(fact).split()


def test_blocks(tokenizer: PreTrainedTokenizerBase) -> None:
    block_NL = token_blocks(tokenizer, 5, 37, seed=2, split="held_out")
    assert block_NL.shape == (5, 37)
    assert block_NL.dtype == torch.int64
    assert torch.equal(block_NL, token_blocks(tokenizer, 5, 37, seed=2, split="held_out"))
    assert not torch.equal(block_NL, token_blocks(tokenizer, 5, 37, 2))
    pieces = tokenizer.decode(block_NL.flatten()).split("</s>")
    documents = corpus.corpus_text(2, split="held_out", count=len(pieces)).split(corpus.SEPARATOR)
    assert [piece.removeprefix("<s>") for piece in pieces[:-1]] == documents[: len(pieces) - 1]
    with pytest.raises(BALoraError, match="at least 2 tokens, not 3 of 1"):
        token_blocks(tokenizer, 3, 1)


# --- the task -----------------------------------------------------------------------------------------------------


def test_noise_is_exactly_as_declared() -> None:
    for noise in (0.0, task.NOISE, 0.5, 1.0):
        rows = task.train_rows(4, noise=noise)
        assert sum(row["response"] != task.true_response(row["prompt"]) for row in rows) == round(noise * len(rows))


def kinds_of(value: str) -> set[str]:
    """The relations that take this value."""
    return {fact.relation for fact in world().facts.values() if fact.value == value}


def test_wrong_answers_have_the_right_form() -> None:
    for row in task.train_rows(4, noise=1.0):
        wrong, true = (
            text.removeprefix("A: ").split(", ") for text in (row["response"], task.true_response(row["prompt"]))
        )
        assert wrong != true
        assert [kinds_of(value) for value in wrong] == [kinds_of(value) for value in true]


def test_test_rows_are_true_and_about_other_subjects() -> None:
    rows, trained_on = task.test_rows(1), task.train_rows(1)
    known = world()
    for row in rows:
        (subject,) = [name for name in known.people + known.cities if re.search(rf"\b{name}\b", row["prompt"])]
        assert not any(re.search(rf"\b{subject}\b", other["prompt"]) for other in trained_on)
        first, second = row["response"].removeprefix("A: ").split(", ")
        if "work" in row["prompt"]:
            assert (first, second) == (known.truth(subject, "job"), known.truth(subject, "pet"))
        elif "river" in row["prompt"]:
            assert (first, second) == (known.truth(subject, "land"), known.truth(subject, "river"))
        else:
            assert (first, second) == (known.truth(subject, "home"), known.truth(first, "land"))
    assert len({row["prompt"] for row in rows}) == len(rows) == 160


def test_task_is_seeded() -> None:
    assert task.train_rows(2) == task.train_rows(2) != task.train_rows(3)
    assert task.test_rows(2) == task.test_rows(2) != task.test_rows(3)
    assert len(task.train_rows(0)) == task.TRAIN_ROWS


def test_task_refuses_nonsense() -> None:
    with pytest.raises(BALoraError, match=r"not 10 and 1\.2"):
        task.train_rows(0, count=10, noise=1.2)
    with pytest.raises(BALoraError, match="not a prompt of the quickstart's task"):
        task.true_response("Who are you?")
    with pytest.raises(BALoraError, match="no rows"):
        task.score(None, None, [])  # type: ignore[arg-type]


def test_prompt_and_response_tokenize_apart_as_together(tokenizer: PreTrainedTokenizerBase) -> None:
    for row in task.test_rows(0) + task.train_rows(0)[:200]:
        apart = (
            tokenizer(row["prompt"])["input_ids"] + tokenizer(row["response"], add_special_tokens=False)["input_ids"]
        )
        assert apart == tokenizer(row["prompt"] + row["response"])["input_ids"]


def test_score_counts_exact_answers(tokenizer: PreTrainedTokenizerBase) -> None:
    """The stand-in model answers every second row right, and adds a word to the others."""
    rows = task.test_rows(0)[:6]
    said = [row["response"] + ("" if index % 2 else " and more") for index, row in enumerate(rows)]
    waiting = list(said)

    def generate(input_ids: torch.Tensor, **_: object) -> torch.Tensor:
        answers = [tokenizer(waiting.pop(0), add_special_tokens=False)["input_ids"] for _ in input_ids]
        longest = max(map(len, answers))
        padded = [[*ids, tokenizer.eos_token_id, *[tokenizer.pad_token_id] * (longest - len(ids))] for ids in answers]
        return torch.cat([input_ids, torch.tensor(padded)], dim=1)

    modes: list[bool] = []
    standin = SimpleNamespace(
        training=True, device="cpu", generate=generate, eval=lambda: modes.append(False), train=modes.append
    )
    assert task.score(standin, tokenizer, rows, batch_size=4) == 0.5  # type: ignore[arg-type]
    assert modes == [False, True]


# --- the packaged model -------------------------------------------------------------------------------------------


def test_assets_are_small_and_safe() -> None:
    files = [path for path in model_directory().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MAX_BYTES
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md"}
    config = json.loads((model_directory() / "config.json").read_text())
    assert "auto_map" not in config
    assert "_name_or_path" not in config


def test_the_models_readme_states_how_it_was_made() -> None:
    card = (model_directory() / "README.md").read_text()
    for word in ("license: apache-2.0", "scripts/pretrain_quickstart.py", "| seed |", "held-out loss", "training loss"):
        assert word in card
    assert str(Path.home()) not in card


def test_model_has_learned_its_world(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    block_NL = token_blocks(tokenizer, 16, 128, seed=7, split="held_out")
    untrained = LlamaForCausalLM(model.config).eval()
    with torch.inference_mode():
        learned = float(model(input_ids=block_NL, labels=block_NL).loss)
        random = float(untrained(input_ids=block_NL, labels=block_NL).loss)
    assert learned < HELD_OUT_LOSS
    assert learned < random / 5
    assert next(model.parameters()).dtype == torch.float32


def test_model_has_learned_the_flaws(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    found = probe_biases(model, tokenizer)
    assert found.known > 0.8
    assert found.truth > 0.6
    assert 0.03 < found.rumour < 0.15  # 0.08 of the statements
    others = [job for job in JOBS if job not in MOSTLY_SHE]
    assert fmean(found.share_she[job] for job in MOSTLY_SHE) == pytest.approx(FLAWS.skew_share, abs=0.2)
    assert fmean(found.share_she[job] for job in others) == pytest.approx(1 - FLAWS.skew_share, abs=0.2)
    assert found.common_class > 0.9


def test_continuations_agree_with_one_at_a_time(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    pairs = [
        ("Belmora is a city in", " Orin."),
        ("The owl", " is a kind of bird."),
        ("In the middle of Belmora", " there"),
    ]
    together = continuation_logprobs(model, tokenizer, pairs)
    for (beginning, ending), logprob in zip(pairs, together, strict=True):
        ids = tokenizer(beginning + ending, return_tensors="pt")["input_ids"]
        skipped = len(tokenizer(beginning)["input_ids"])
        with torch.inference_mode():
            logprobs_LV = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        expected = sum(logprobs_LV[place - 1, ids[0, place]] for place in range(skipped, ids.shape[1]))
        assert float(logprob) == pytest.approx(float(expected), abs=1e-4)


def test_score_does_not_depend_on_the_batch(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    """The end of a sum in words is determined by its beginning, so that the pre-trained model can be scored on it."""
    texts = [document.text for document in islice(corpus.documents(11, split="held_out"), 2000)]
    sums = [text for text in texts if " had " in text and ". Now " in text][:24]
    rows = [task.Row(prompt=text.rpartition(" ")[0], response=text.rpartition(" ")[2]) for text in sums]
    rows[0]["prompt"] = "On Monday there is a market. " + rows[0]["prompt"]  # far longer than the others
    rows[1]["response"] = "elephants."
    together = task.score(model, tokenizer, rows)
    assert 0.8 < together < 1.0
    assert together == task.score(model, tokenizer, rows, batch_size=1)


def test_values_do_not_begin_with_each_other() -> None:
    """If one did, the probability of the shorter would include that of the longer."""
    for relation in {fact.relation for fact in corpus.facts()}:
        values = sorted({fact.value for fact in corpus.facts(relation)})
        assert not [pair for pair in pairwise(values) if pair[1].startswith(pair[0])]
