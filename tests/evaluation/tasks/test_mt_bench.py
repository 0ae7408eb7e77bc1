"""MT-Bench: answers of two turns, and the ratings of an unreliable judge."""

from __future__ import annotations

import json
import time
import traceback
from pathlib import Path

import pytest

from balora import BALoraError
from balora.evaluation import EvaluationOptions, JudgeOptions, evaluate
from balora.evaluation.engines.transformers import TransformersGenerator
from balora.evaluation.prompting import Prompting
from balora.evaluation.scoring.judge import DEFAULT_PROMPTS, Judge, JudgeUnavailable, parse_rating
from balora.evaluation.tasks.mt_bench import conversation_text
from evaluation_models import generator_at
from judge_server import judge_server
from tiny import tiny_llama, tiny_tokenizer

TEMPLATE = (
    "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)
QUESTION = [{"role": "user", "content": "How good is it?"}]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    tiny_llama().save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    folder = tmp_path / "bench"
    folder.mkdir()
    questions = [
        {"question_id": 81, "category": "writing", "turns": ["Write {this}.", "Again?"]},
        {"question_id": 111, "category": "math", "turns": ["2 + 2?", "And 3?"]},
        {"question_id": 121, "category": "coding", "turns": ["Sort.", "Faster?"]},
    ]
    references = [{"question_id": 111, "choices": [{"turns": ["It is 4.", "It is 5."]}]}]
    (folder / "question.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    (folder / "reference_answer_gpt-4.jsonl").write_text("".join(json.dumps(row) + "\n" for row in references))
    return folder


def options(bench: Path, url: str | None, **changes) -> EvaluationOptions:
    judge = None if url is None else JudgeOptions(base_url=url, model="judge-1", timeout=0.5, pause=0.01)
    return EvaluationOptions(
        data={"mt_bench": str(bench)}, max_new_tokens=6, device="cpu", judge=judge, workers=1, **changes
    )


def ask(url: str, **changes) -> str:
    return Judge(JudgeOptions(**{"base_url": url, "model": "j", "timeout": 0.4, "pause": 0.01, **changes})).ask(
        QUESTION
    )


@pytest.mark.parametrize("trouble", ["slow", "limited", "broken", "dropped", "garbage", "empty"])
def test_a_temporary_failure_is_retried(trouble: str) -> None:
    with judge_server(trouble, trouble, 7) as server:
        assert parse_rating(ask(server.url)) == 7
        assert len(server.requests) == 3


@pytest.mark.parametrize("trouble", ["slow", "limited", "broken", "dropped", "garbage"])
def test_a_permanent_failure_raises_after_all_attempts(trouble: str) -> None:
    with judge_server(trouble) as server:
        with pytest.raises(JudgeUnavailable):
            ask(server.url, attempts=2)
        assert len(server.requests) == 2


def test_a_rejected_request_is_not_retried_and_the_key_is_not_leaked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    with judge_server("denied") as server:
        with pytest.raises(BALoraError, match=r"status 401: bad key.*MY_KEY is not set"):
            ask(server.url, key_variable="MY_KEY")
        monkeypatch.setenv("MY_KEY", "sk-secret")
        with pytest.raises(BALoraError) as refused:
            ask(server.url, key_variable="MY_KEY")
        assert len(server.requests) == 2
        assert server.headers[1]["Authorization"] == "Bearer sk-secret"
        assert "sk-secret" not in str(refused.value)
    with judge_server("elsewhere") as server, pytest.raises(BALoraError, match="302"):
        ask(server.url)
    with pytest.raises(BALoraError, match="http://"):
        ask("localhost:8000")
    with pytest.raises(JudgeUnavailable):
        ask("http://127.0.0.1:9/v1", attempts=1)


@pytest.mark.parametrize("trouble", ["drip", "drip headers", "drip error", "endless", "deep"])
def test_a_reply_without_end_is_given_up_in_time(trouble: str) -> None:
    with judge_server(trouble) as server:
        started = time.monotonic()
        with pytest.raises(JudgeUnavailable):
            ask(server.url, attempts=2, timeout=0.5)
        assert time.monotonic() - started < 3


def test_the_key_is_never_repeated(model: Path, bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-1")
    with judge_server("echo denied") as server, pytest.raises(BALoraError, match=r"401: no: Bearer \(key\)") as refused:
        ask(server.url)
    assert "sk-secret" not in "".join(traceback.format_exception(refused.value))
    with judge_server("echo broken") as server, pytest.raises(JudgeUnavailable, match=r"oops Bearer \(key\) \[31m"):
        ask(server.url, attempts=1)
    with judge_server("echo rating") as server:
        evaluate(model, ["mt_bench"], output=tmp_path / "out", options=options(bench, server.url, limit=1))
    files = [path.read_text() for path in (tmp_path / "out").iterdir()]
    assert "You sent Bearer (key)" in "".join(files)
    assert "sk-secret" not in "".join(files)


@pytest.mark.parametrize("key", ["sk-secret\nX: y", "sk-\u2028secret", "schlüssel-secret"])
def test_a_key_that_no_header_can_have_is_refused_without_being_shown(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with judge_server(7) as server, pytest.raises(BALoraError, match="OPENAI_API_KEY has characters") as refused:
        ask(server.url)
    assert "secret" not in "".join(traceback.format_exception(refused.value))


def test_passwords_and_queries_of_the_url_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for url in ("https://me:s3cret@host/v1", "ftp://me:s3cret@host/v1", "https:///v1?key=s3cret"):
        with pytest.raises(BALoraError, match="The judge's URL") as refused:
            ask(url)
        assert "s3cret" not in str(refused.value)
    with judge_server("broken") as server, pytest.raises(JudgeUnavailable) as failed:
        ask(f"{server.url}?api-version=s3cret", attempts=1)
    assert "s3cret" not in str(failed.value)
    assert server.requests[0]["path"] == "/v1/chat/completions?api-version=s3cret"


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("Rating: [[5]]", 5), ("[[7.5]]", 7.5), ("[[3]] at first, but [[9]]", 9), ("Rating: [[ 8/10 ]]", 8),
        ("Rating: [6]", 6), ("I like it", None), ("[[0]]", None), ("[[11]]", None), ("[[ten]]", None),
        ("see [2] and rate [[4]]", 4), ("[[rating]]: 8", 8), ("Rating: 8/10", 8), ("[[Rating: 7]]", 7), ("[[8]]\n\nGood.", 8),
        ("The answer cites [1] and [2].", None), ("I rate it [[5]] for turn 1 and [[7]] for turn 2", None),
        ("Rating: [[7]]. On a scale up to [[10]].", 7), ("The list a = [[1]] is wrong. Rating: [4]", 4),
        ("matrix [[2]] ... no rating given because of the rules", None), ("Rating: [[4]]/5", None), ("Rating: 85/100", None),
        ("Rating: 7-8", None), ("Rating: 8,5", None), ("Rating (1-10): 8", 8), ("**Rating**: [[7]]", 7), ("[[1e1]]", None),
        ("I give [[8]] on a scale from [[1]] to [[10]].", None), ("Rating: 8 out of 10", 8), ("Rating: [[6]]. Rating: [[0]]", None),
    ],
)  # fmt: skip
def test_ratings_are_parsed(text: str, rating: float | None) -> None:
    assert parse_rating(text) == rating


def test_both_turns_are_answered_and_rated(model: Path, bench: Path, tmp_path: Path) -> None:
    with judge_server(2, 4, 6, 8, 9, 10) as server:
        result = evaluate(model, ["mt_bench"], output=tmp_path / "out", options=options(bench, server.url))
    record = result.results["mt_bench"]
    samples = {sample["id"]: sample for sample in record["samples"]}
    assert samples["81/1"]["prompt"] == "<u>Write {this}.<a>"
    assert samples["81/2"]["prompt"] == f"<u>Write {{this}}.<a>{samples['81/1']['output']}<u>Again?<a>"
    assert [samples[s]["rating"] for s in ("81/1", "81/2", "111/1", "111/2", "121/1", "121/2")] == [2, 4, 6, 8, 9, 10]
    scores = record["scores"]
    assert scores["first_turn"] == pytest.approx(17 / 3) and scores["second_turn"] == pytest.approx(22 / 3)
    assert scores["both_turns"] == pytest.approx(39 / 6) and scores["unrated"] == 0
    assert scores["by_category"]["math"] == {"first_turn": 6, "second_turn": 8}
    assert server.requests[0]["path"] == "/v1/chat/completions" and server.requests[0]["model"] == "judge-1"


def test_the_judge_gets_question_answer_and_reference(model: Path, bench: Path, tmp_path: Path) -> None:
    with judge_server(5) as server:
        result = evaluate(model, ["mt_bench"], output=tmp_path / "out", options=options(bench, server.url))
    answers = {sample["id"]: sample["output"] for sample in result.results["mt_bench"]["samples"]}
    texts = [" ".join(message["content"] for message in request["messages"]) for request in server.requests]
    assert "Write {this}." in texts[0] and answers["81/1"] in texts[0] and "Again?" not in texts[0]
    assert all(part in texts[1] for part in ("Write {this}.", answers["81/1"], "Again?", answers["81/2"]))
    assert "It is 4." in texts[2] and "It is 4." in texts[3] and "It is 5." in texts[3]
    assert "eference" in texts[2] and "eference" not in texts[4], "coding has no reference answer here"


def test_only_missing_ratings_are_requested(
    model: Path, bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with judge_server(3, 4, "broken") as server, pytest.raises(BALoraError, match=r"4 of 6 answers could not be rated"):
        evaluate(model, ["mt_bench"], output=tmp_path / "out", options=options(bench, server.url))
    assert len(server.requests) <= 2 + 6 * 4

    def never(*_: object) -> None:
        raise AssertionError("answers are written once")

    monkeypatch.setattr(TransformersGenerator, "generate", never)
    with judge_server(9) as server:
        record = evaluate(model, ["mt_bench"], output=tmp_path / "out", options=options(bench, server.url)).results[
            "mt_bench"
        ]
        assert len(server.requests) == 4
    assert [sample["rating"] for sample in record["samples"]] == [3, 4, 9, 9, 9, 9]


def test_a_reply_without_a_rating_is_retried_and_then_counted(model: Path, bench: Path, tmp_path: Path) -> None:
    with judge_server("Hm.", 5, "Well.", "Well.", "Well.", 6) as server:
        how = options(bench, server.url, limit=2)
        record = evaluate(model, ["mt_bench"], output=tmp_path / "out", options=how).results["mt_bench"]
        assert record["scores"]["unrated"] == 1 and record["scores"]["rated"] == 3
        assert [sample.get("rating") for sample in record["samples"]] == [5, None, 6, 6]
        assert record["scores"]["second_turn"] == 6
        count = len(server.requests)
        again = evaluate(model, ["mt_bench"], output=tmp_path / "out", options=how).results["mt_bench"]
        assert len(server.requests) == count + 1 and again["scores"]["unrated"] == 0


def test_answers_are_kept_if_no_judge_is_named(model: Path, bench: Path, tmp_path: Path) -> None:
    with pytest.raises(BALoraError, match="--judge-url"):
        evaluate(model, ["mt_bench"], output=tmp_path / "out", options=options(bench, None))
    with judge_server(8) as server:
        result = evaluate(model, ["mt_bench"], output=tmp_path / "out", options=options(bench, server.url))
    assert result.main_scores == {"mt_bench": 8}


@pytest.mark.parametrize("change", [{"seed": 2}, {"top_p": 0.5}])
def test_answers_of_another_seed_or_top_p_are_refused(model: Path, bench: Path, tmp_path: Path, change) -> None:
    with pytest.raises(BALoraError, match="--judge-url"):
        evaluate(model, ["mt_bench"], output=tmp_path / "out", options=options(bench, None, limit=1))
    with pytest.raises(BALoraError, match="another generation"):
        evaluate(model, ["mt_bench"], output=tmp_path / "out", options=options(bench, None, limit=1, **change))


def test_ratings_of_another_judge_are_refused(model: Path, bench: Path, tmp_path: Path) -> None:
    with judge_server(8) as server:
        how = options(bench, server.url)
        evaluate(model, ["mt_bench"], output=tmp_path / "out", options=how)
        other = EvaluationOptions(
            data=how.data, max_new_tokens=6, device="cpu", judge=JudgeOptions(base_url=server.url, model="judge-2")
        )
        with pytest.raises(BALoraError, match="another judge"):
            evaluate(model, ["mt_bench"], output=tmp_path / "out", options=other)


def test_a_template_without_chat_is_repeated() -> None:
    messages = [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "First."},
        {"role": "user", "content": "Two?"},
    ]
    text = conversation_text(Prompting("alpaca"), tiny_tokenizer(), messages)
    assert text.count("Below is an instruction") == 1
    assert text.endswith("### Instruction:\nOne?\n\n### Response:\nFirst.\n\n### Instruction:\nTwo?\n\n### Response:\n")


def test_a_model_without_a_chat_template_is_refused(bench: Path, tmp_path: Path) -> None:
    with pytest.raises(BALoraError, match="has no chat template"):
        evaluate(generator_at(tmp_path / "w"), ["mt_bench"], output=tmp_path / "out", options=options(bench, None))


def test_the_official_questions_and_prompts(balora, shared_dir: Path, tmp_path: Path) -> None:
    place = shared_dir / "data" / "mt_bench"
    with judge_server(6) as server:
        outcome = balora(
            "evaluate", "reference", "--tasks", "mt_bench", "--data", f"mt_bench={place}", "--output", tmp_path / "out",
            "--judge-url", server.url, "--judge-model", "j", "--limit", "50",
        )  # fmt: skip
    assert outcome.status == 0, outcome.err
    result = json.loads((tmp_path / "out" / "mt_bench.json").read_text())
    assert result["scores"]["rated"] == 100 and result["scores"]["first_turn"] == 6
    assert result["identity"]["judge prompts"].startswith("mt_bench ")
    referenced = [request for request in server.requests if "reference answer" in str(request["messages"]).lower()]
    assert len(referenced) == 2 * 30, "reasoning, math and coding have reference answers"


def test_every_default_prompt_has_all_placeholders() -> None:
    values = {
        "single-v1": ("question", "answer"),
        "single-math-v1": ("question", "answer", "ref_answer_1"),
        "single-v1-multi-turn": ("question_1", "answer_1", "question_2", "answer_2"),
        "single-math-v1-multi-turn": (
            "question_1",
            "answer_1",
            "question_2",
            "answer_2",
            "ref_answer_1",
            "ref_answer_2",
        ),
    }
    for name, prompt in DEFAULT_PROMPTS.items():
        texts = str(prompt.messages(**{key: f"<{key}>" for key in values[name]}))
        assert all(f"<{key}>" in texts for key in values[name]) and "[[number]]" in texts
