"""`balora chat`: both models answer as they would alone, and a script gets plain text."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest

import balora as library
from balora.errors import BALoraError
from balora.evaluation.chat import BASE, TUNED, Chat, ChatSettings
from balora.evaluation.model_under_test import ModelUnderTest
from command import Command
from tiny import tiny_tokenizer

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "kept_runs"
GREEDY = ChatSettings(temperature=0, max_new_tokens=24)
QUESTION = "what is 2 plus 3?"


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "kept"
    for name in ("base", "finished", "classifier", "encoder"):
        shutil.copytree(FIXTURE / name, folder / name)
    monkeypatch.chdir(folder)
    return folder


def silent(text: str) -> None:
    pass


def test_the_pretrained_model_answers_as_it_does_alone(kept: Path) -> None:
    chat = Chat(ModelUnderTest("finished"))
    assert chat.sides == (BASE, TUNED)
    plain = Chat(ModelUnderTest("base"), template="none")
    plain.prompting = chat.prompting
    assert plain.sides == (TUNED,)
    base, tuned = (chat.ask(side, QUESTION, GREEDY, silent) for side in chat.sides)
    assert base == plain.ask(TUNED, QUESTION, GREEDY, silent)
    assert tuned != base
    assert tuned == chat.ask(TUNED, QUESTION, GREEDY, silent)


def test_an_exported_adapter_has_the_same_two_models(kept: Path) -> None:
    library.export("finished", to="lora", output="lora")
    exported, run = Chat(ModelUnderTest("lora"), template="none"), Chat(ModelUnderTest("finished"))
    exported.prompting = run.prompting
    for side in (BASE, TUNED):
        assert exported.ask(side, QUESTION, GREEDY, silent) == run.ask(side, QUESTION, GREEDY, silent)


def test_an_answer_is_streamed_in_parts_that_join_to_it(kept: Path) -> None:
    parts: list[str] = []
    answer = Chat(ModelUnderTest("finished")).ask(TUNED, QUESTION, GREEDY, parts.append)
    assert len(parts) > 5
    assert "".join(parts) == answer


def test_a_seed_decides_a_sampled_answer(kept: Path) -> None:
    chat = Chat(ModelUnderTest("finished"), with_base=False)
    settings = ChatSettings(temperature=5.0, top_p=1.0, max_new_tokens=24)
    one, again = (chat.ask(TUNED, QUESTION, settings, silent) for _ in range(2))
    assert one == again
    chat.next_turn()
    assert chat.ask(TUNED, QUESTION, settings, silent) != one


def test_a_chat_template_gives_each_model_its_history(kept: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'][0] + ': ' + m['content'] + ' ' }}{% endfor %}a: "
    tokenizer.save_pretrained("base")
    chat = Chat(ModelUnderTest("base"), system="be brief")
    assert chat.keeps_history
    chat.ask(TUNED, "one", GREEDY, silent)
    assert [message["role"] for message in chat.histories[TUNED]] == ["system", "user", "assistant"]
    longer = chat._tokens(chat.histories[TUNED], "two")
    assert len(longer) > len(chat._tokens([], "two"))
    for number in range(20):  # the tiny model takes 256 tokens
        chat.ask(TUNED, f"question {number}", GREEDY, silent)
    assert "oldest turns were left out" in chat.notes[0]
    chat.reset()
    assert chat.histories == {TUNED: []}


def test_an_interrupt_keeps_what_was_written(kept: Path) -> None:
    chat = Chat(ModelUnderTest("finished"), with_base=False)
    parts: list[str] = []

    def write(text: str) -> None:
        parts.append(text)
        if len(parts) == 3:
            raise KeyboardInterrupt

    whole = chat.ask(TUNED, QUESTION, GREEDY, silent)
    assert whole.startswith(chat.ask(TUNED, QUESTION, GREEDY, write))
    assert len(parts) < len(whole)


def test_a_system_message_without_a_template_is_refused(kept: Path) -> None:
    with pytest.raises(BALoraError, match="needs a chat template"):
        Chat(ModelUnderTest("finished"), system="be brief")


def test_a_script_gets_the_answers(balora: Command, kept: Path) -> None:
    options = ("--temperature", "0", "--max-new-tokens", "24")
    outcome = balora("chat", "finished", "--once", QUESTION, "--json", *options)
    assert outcome.status == 0, outcome.err
    answers = json.loads(outcome.out)
    assert list(answers) == ["prompt", "base", "tuned"]
    alone = balora("chat", "finished", "--once", QUESTION, "--no-base", *options)
    assert alone.out.strip() == answers["tuned"].strip()
    both = balora("chat", "finished", "--once", QUESTION, *options)
    assert both.out.startswith("base:\n")
    assert "\ntuned:\n" in both.out


def test_lines_of_a_pipe_are_questions_and_commands(
    balora: Command, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "sys.stdin", io.StringIO(f"/temperature 0\n/max-new-tokens 8\n{QUESTION}\n/tmperature 1\n/seed x\n/quit\nno")
    )
    outcome = balora("chat", "finished")
    assert outcome.status == 0
    assert "temperature 0.0" in outcome.out
    assert outcome.out.count("base:") == 1
    assert "no command /tmperature. Did you mean 'temperature'?" in outcome.err
    assert "/seed needs a number, not 'x'" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent/model", "--once", "x"], "could not be reached"),
        (["./absent"], "There is no folder ./absent"),
        (["classifier", "--once", "x"], "writes no text"),
        (["finished", "--once", " ", "--json"], "--once has no text"),
        (["finished", "--json"], "--json needs --once"),
        (["finished", "--temperature", "-1"], "temperature must be at least 0"),
        (["finished", "--prompt-template", "x", "--once", "y"], "prompt"),
    ],
)
def test_a_mistake_is_one_sentence(balora: Command, kept: Path, arguments: list[str], message: str) -> None:
    outcome = balora("chat", *arguments)
    assert outcome.status == 2, outcome.out + outcome.err
    assert message in outcome.err
    assert "Traceback" not in outcome.err
