"""Generation through transformers: batches, stop strings, prompt formats, and resuming after a kill."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import balora
from balora import BALoraError
from balora.config.run_config import RunConfig
from balora.evaluation import EvaluationOptions, evaluate
from balora.evaluation.engines.next_token import NextToken
from balora.evaluation.engines.transformers import (
    Answer,
    Sampling,
    TransformersGenerator,
    decode_answer,
    fit_prompt,
    pad,
)
from balora.evaluation.model_under_test import LoadedModel, ModelUnderTest
from balora.evaluation.prompting import Prompting, prompting_for
from evaluation_models import classifier_at, generator_at
from tiny import tiny_bart, tiny_llama, tiny_tokenizer
from trained_runs import trained_run

PROMPTS = [[1, *range(10, 10 + length)] for length in (3, 9, 5, 5, 14, 2, 7)]


def generator(batch_size: int, model=None) -> TransformersGenerator:
    return TransformersGenerator(LoadedModel(model or tiny_llama(), tiny_tokenizer(), "generation"), batch_size)


def test_a_batch_gives_the_same_answers_as_single_prompts() -> None:
    sampling = Sampling(max_new_tokens=12)
    together = dict(generator(4).generate(PROMPTS, sampling))
    assert sorted(together) == list(range(7))
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    for number, ids in enumerate(PROMPTS):
        with torch.no_grad():
            alone = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False, pad_token_id=0)
        # This tokenizer puts a space before every token but the first, and the answer's first token follows the prompt.
        assert together[number].text == " " + tokenizer.decode(alone[0, len(ids) :], skip_special_tokens=True)


def test_the_longest_prompts_come_first_and_batches_keep_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    widths = []
    monkeypatch.setattr(
        TransformersGenerator,
        "_generate_batch",
        lambda self, prompts, sampling, seed: (
            widths.append([len(p) for p in prompts]) or [Answer("", 0, True)] * len(prompts)
        ),
    )
    list(generator(3).generate(PROMPTS, Sampling(max_new_tokens=2)))
    assert widths == [[15, 10, 8], [6, 6, 4], [3]]


def test_too_little_memory_halves_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def batch(self, prompts, sampling, seed):
        sizes.append(len(prompts))
        if len(prompts) > 2:
            raise torch.OutOfMemoryError
        return [Answer(str(len(prompt)), 1, True) for prompt in prompts]

    monkeypatch.setattr(TransformersGenerator, "_generate_batch", batch)
    answers = dict(generator(5).generate(PROMPTS, Sampling(max_new_tokens=2)))
    assert sizes == [5, 2, 2, 2, 1]
    assert [answers[number].text for number in range(7)] == [str(len(prompt)) for prompt in PROMPTS]


def test_a_stop_string_ends_an_answer_and_is_not_part_of_it() -> None:
    free = dict(generator(7).generate(PROMPTS, Sampling(max_new_tokens=30)))
    stop = free[0].text[4:6]
    stopped = dict(generator(7).generate(PROMPTS, Sampling(max_new_tokens=30, stops=(stop,))))
    for number, answer in free.items():
        assert stopped[number].text == answer.text.split(stop)[0]
    assert stopped[0].ended and not free[0].ended
    assert stopped[0].tokens < free[0].tokens


def test_sampling_is_seeded() -> None:
    def texts(**how) -> list[str]:
        found = dict(generator(3).generate(PROMPTS, Sampling(max_new_tokens=8, temperature=1.0, **how)))
        return [found[number].text for number in range(7)]

    assert texts(seed=1) == texts(seed=1) != texts(seed=2)


def test_samples_that_are_added_later_differ_from_the_existing_ones() -> None:
    sampling = Sampling(max_new_tokens=8, temperature=1.0)

    def texts(names: list[str]) -> list[str]:
        found = dict(generator(2).generate([PROMPTS[1]] * len(names), sampling, names))
        return [found[number].text for number in range(len(names))]

    first, later = texts(["0/0", "0/1"]), texts(["0/2", "0/3"])
    assert len({*first, *later}) == 4
    assert texts(["0/0", "0/1", "0/2", "0/3"]) == first + later


def test_a_prompt_that_is_too_long_loses_its_beginning() -> None:
    assert fit_prompt(list(range(100)), 20, 64) == list(range(56, 100))
    answers = dict(generator(2).generate([[1] * 300], Sampling(max_new_tokens=40)))
    assert answers[0].prompt_cut and answers[0].tokens <= 40


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_an_answer_near_the_last_position_is_as_long_in_any_batch(batch_size: int) -> None:
    model = tiny_llama()
    positions = model.config.max_position_embeddings
    model.generation_config.eos_token_id = None
    prompts = [[1, *range(10, 10 + length)] for length in (2, 9, 9, 5)]
    sampling = Sampling(max_new_tokens=positions - 4)
    answers = dict(generator(batch_size, model).generate(prompts, sampling))
    alone = [dict(generator(1, model).generate([ids], sampling))[0] for ids in prompts]
    assert [answers[number] for number in range(4)] == alone


def test_padding_is_on_the_left_or_for_encoders_on_the_right_and_masked() -> None:
    tokens, mask = pad([[5, 6, 7], [8]], 0)
    assert tokens.tolist() == [[5, 6, 7], [0, 0, 8]] and mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    tokens, mask = pad([[5, 6, 7], [8]], 0, right=True)
    assert tokens.tolist() == [[5, 6, 7], [8, 0, 0]] and mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_an_answer_keeps_its_leading_space(stories: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(stories)
    prompt, reply = "Once upon a", " time there was"
    before = tokenizer(prompt)["input_ids"]
    ids = tokenizer(prompt + reply)["input_ids"][len(before) :]
    assert decode_answer(tokenizer, ids, Sampling(max_new_tokens=50), 50, before[-8:]).text == reply


def test_an_encoder_decoder_answers_with_its_decoder_output() -> None:
    model, tokenizer = tiny_bart(), tiny_tokenizer()
    writer = TransformersGenerator(LoadedModel(model, tokenizer, "seq2seq"), 4)
    answers = dict(writer.generate(PROMPTS, Sampling(max_new_tokens=6)))
    with torch.no_grad():
        alone = model.generate(torch.tensor([PROMPTS[1]]), max_new_tokens=6, do_sample=False, num_beams=1)
    ids = alone[0, 1:].tolist()
    ids = ids[: ids.index(2)] if 2 in ids else ids
    assert answers[1].text == tokenizer.decode(ids, skip_special_tokens=True)


def run_config(**data) -> RunConfig:
    columns = {"prompt": "q", "response": "a"} if "messages" not in data else {}
    return RunConfig.from_dict(
        {"model": "m", "task": "generation", "data": {"train": "t.jsonl", **columns, **data}, "output": "o"}
    )


def test_a_run_gets_the_prompt_format_of_its_training() -> None:
    tokenizer = tiny_tokenizer()

    def prompt(run: RunConfig | None, template: str | None = None) -> str:
        return prompting_for(template, run, "alpaca", " ").text(tokenizer, "2 + 2?")

    assert prompt(run_config()) == "2 + 2?\n"
    assert prompt(run_config(prompt_template="Q: {prompt} A:")) == "Q: 2 + 2? A:"
    assert prompt(run_config(separator=" => ")) == "2 + 2? => "
    assert prompt(run_config(prompt_template="alpaca")).endswith("### Response:\n")
    assert prompt(None).endswith("### Response: ")
    assert prompt(run_config(), "Say: {prompt}") == "Say: 2 + 2?"
    assert prompting_for(None, run_config(messages="messages"), "none").template == "chat"


def test_the_chat_template_is_that_of_the_tokenizer() -> None:
    tokenizer = tiny_tokenizer()
    with pytest.raises(BALoraError, match="has no chat template"):
        Prompting("chat").text(tokenizer, "hi")
    tokenizer.chat_template = (
        "<s>{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[me]{% endif %}"
    )
    text = Prompting("chat").text(tokenizer, "hi", "Well")
    assert text == "<s>[user]hi[me]Well"
    assert Prompting("chat").tokens(tokenizer, text).count(1) == 1
    with pytest.raises(BALoraError, match="prompt_template"):
        Prompting("no place")


def test_a_kill_loses_only_the_current_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "test.jsonl"
    data.write_text("".join(json.dumps({"question": "?" * (n + 1), "answer": f"#### {n}"}) + "\n" for n in range(9)))
    model = generator_at(tmp_path / "m")
    options = EvaluationOptions(data={"gsm8k": str(data)}, batch_size=2, max_new_tokens=5, device="cpu")
    whole = evaluate(model, ["gsm8k"], output=tmp_path / "whole", options=options).results["gsm8k"]
    batch, calls = TransformersGenerator._generate_batch, []

    def dies(self, prompts, sampling, seed):
        calls.append(len(prompts))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return batch(self, prompts, sampling, seed)

    monkeypatch.setattr(TransformersGenerator, "_generate_batch", dies)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, ["gsm8k"], output=tmp_path / "out", options=options)
    resumed = evaluate(model, ["gsm8k"], output=tmp_path / "out", options=options).results["gsm8k"]
    assert calls == [2, 2, 2, 2, 2, 1]
    outputs = [[s["output"] for s in r["samples"]] for r in (whole, resumed)]
    assert outputs[0] == outputs[1]
    assert resumed["scores"] == whole["scores"]


def test_other_generation_settings_are_refused(tmp_path: Path) -> None:
    data = tmp_path / "test.jsonl"
    data.write_text(json.dumps({"question": "?", "answer": "#### 1"}) + "\n")
    model = generator_at(tmp_path / "m")

    def run(**changes) -> None:
        options = EvaluationOptions(**{"data": {"gsm8k": str(data)}, "max_new_tokens": 3, "device": "cpu", **changes})
        evaluate(model, ["gsm8k"], output=tmp_path / "out", options=options)

    run()
    for changes in ({"max_new_tokens": 4}, {"temperature": 0.5}):
        with pytest.raises(BALoraError, match="another generation"):
            run(**changes)
    with pytest.raises(BALoraError, match="another prompting"):
        run(prompt_template="none")


@pytest.mark.parametrize("file", ["tokenizer.json", "chat_template.jinja", "merges.txt", "vocab.txt", "spiece.model"])
def test_tokenizer_and_chat_template_are_part_of_the_identity(tmp_path: Path, file: str) -> None:
    model = generator_at(tmp_path / "m")
    before = ModelUnderTest(str(model)).identity
    (model / "README.md").write_text("It says nothing else.")
    assert ModelUnderTest(str(model)).identity == before
    with (model / file).open("a") as changed:
        changed.write("\n")
    assert ModelUnderTest(str(model)).identity != before


def test_an_exported_adapter_gives_the_answers_of_its_run(tmp_path: Path) -> None:
    data = tmp_path / "test.jsonl"
    data.write_text("".join(json.dumps({"question": "?" * (n + 1), "answer": "#### 1"}) + "\n" for n in range(3)))
    run = trained_run(tmp_path / "run", tiny_llama(), "generation")
    balora.export(run.folder, to="lora", output=tmp_path / "lora")

    def outputs(model: Path) -> list[str]:
        options = EvaluationOptions(data={"gsm8k": str(data)}, max_new_tokens=8, device="cpu", prompt_template="none")
        result = evaluate(model, ["gsm8k"], output=tmp_path / f"out-{model.name}", options=options)
        return [sample["output"] for sample in result.results["gsm8k"]["samples"]]

    assert outputs(run.folder) == outputs(tmp_path / "lora") != outputs(run.base)
    assert ModelUnderTest(str(run.folder)).folder == run.folder / "evaluation"


def test_a_model_that_cannot_be_evaluated_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "test.jsonl"
    data.write_text(json.dumps({"question": "?", "answer": "#### 1"}) + "\n")
    options = EvaluationOptions(data={"gsm8k": str(data)})
    with pytest.raises(BALoraError, match="is a classifier, which generates no text"):
        evaluate(classifier_at(tmp_path / "c", ["a", "b"]), ["gsm8k"], output=tmp_path / "o", options=options)
    with pytest.raises(BALoraError, match="no folder"):
        ModelUnderTest(str(tmp_path / "absent"))
    with pytest.raises(BALoraError, match=r"is not a run directory"):
        (tmp_path / "empty").mkdir()
        ModelUnderTest(str(tmp_path / "empty"))
    options = EvaluationOptions(data={"gsm8k": str(data)}, engine="vllm")
    with pytest.raises(BALoraError, match="vLLM is not installed"):
        evaluate(generator_at(tmp_path / "w"), ["gsm8k"], output=tmp_path / "v", options=options)


@pytest.mark.parametrize("architecture", [tiny_llama, tiny_bart])
def test_a_sampled_answer_does_not_depend_on_its_batch(architecture) -> None:
    task = "seq2seq" if architecture is tiny_bart else "generation"
    sampling = Sampling(max_new_tokens=12, temperature=0.9, top_p=0.95, seed=3)
    names = [f"{number}/0" for number in range(len(PROMPTS))]

    def texts(batch_size: int, chosen: list[int]) -> dict[str, str]:
        engine = TransformersGenerator(LoadedModel(architecture(), tiny_tokenizer(), task), batch_size)
        found = engine.generate([PROMPTS[i] for i in chosen], sampling, [names[i] for i in chosen])
        return {names[chosen[index]]: answer.text for index, answer in found}

    together = texts(7, list(range(7)))
    assert len(set(together.values())) > 4
    for batch_size, chosen in ((1, [0, 1, 2, 3, 4, 5, 6]), (3, [6, 5, 4, 3, 2, 1, 0]), (2, [4, 1])):
        alone = texts(batch_size, chosen)
        assert alone == {name: together[name] for name in alone}


def test_the_frequencies_of_sampled_tokens_are_those_of_the_distribution() -> None:
    scores = torch.tensor([[2.0, 1.0, 0.0, -1.0, -torch.inf]]).expand(4000, -1)
    for temperature, top_p in ((1.0, 1.0), (0.5, 1.0), (1.0, 0.8)):
        drawn = NextToken(range(4000), temperature, top_p)(torch.zeros(4000, 1), scores).argmax(-1)
        expected = (scores[0] / temperature).softmax(-1)
        if top_p < 1:
            expected = torch.where(torch.arange(5) < 2, expected, 0.0)  # 0.64 and 0.24 are the first that reach 0.8
            expected = expected / expected.sum()
        assert torch.allclose(torch.bincount(drawn, minlength=5) / 4000, expected, atol=0.025)


def test_a_global_seed_is_left_alone_and_changes_nothing() -> None:
    sampling = Sampling(max_new_tokens=6, temperature=1.0)
    torch.manual_seed(1)
    first = dict(generator(3).generate(PROMPTS, sampling))
    state = torch.random.get_rng_state()
    assert dict(generator(3).generate(PROMPTS, sampling)) == first
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_outputs_that_are_nan_are_refused(temperature: float) -> None:
    model = tiny_llama()
    model.lm_head.weight.data[3] = torch.nan
    with pytest.raises(BALoraError, match="outputs are NaN"):
        list(generator(2, model).generate(PROMPTS, Sampling(max_new_tokens=4, temperature=temperature)))


def test_a_sampled_journal_of_an_earlier_version_is_not_continued(tmp_path: Path) -> None:
    """It was drawn with one seed per batch; greedy journals have kept their meaning and are continued."""
    data = tmp_path / "test.jsonl"
    data.write_text("".join(json.dumps({"question": f"{n}?", "answer": "#### 1"}) + "\n" for n in range(3)))
    model = generator_at(tmp_path / "m")

    def identity(**changes) -> dict:
        options = EvaluationOptions(data={"gsm8k": str(data)}, max_new_tokens=3, device="cpu", **changes)
        evaluate(model, ["gsm8k"], output=tmp_path / str(changes), options=options)
        journal = (tmp_path / str(changes) / "gsm8k.samples.jsonl").read_text()
        return json.loads(journal.splitlines()[0])["identity"]["generation"]

    assert identity()["temperature"] == 0 and "draws" not in identity()
    assert identity(temperature=0.5)["draws"] == "transformers, one seed per sample"
