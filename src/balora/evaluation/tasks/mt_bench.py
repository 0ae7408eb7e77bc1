"""MT-Bench: eighty conversations of two turns, answered by the model, rated by a judge.

Reference: Zheng et al., Judging LLM-as-a-judge with MT-Bench and Chatbot Arena, 2023. The paper reports the first turn.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from balora.data.readers import read_table
from balora.errors import BALoraError
from balora.evaluation.context import Request, Session
from balora.evaluation.data import Origin, Rows
from balora.evaluation.options import JudgeOptions
from balora.evaluation.prompting import CHAT, Message, Prompting
from balora.evaluation.results import Journal, Record
from balora.evaluation.scoring.judge import Judge, JudgeUnavailable
from balora.evaluation.scoring.judge_prompts import OURS, JudgePrompt, prompts_from, rating_in

NAME = "mt_bench"
_ORIGIN = Origin("HuggingFaceH4/mt_bench_prompts", splits=("train",))
_QUESTIONS, _PROMPTS, _REFERENCES = "question.jsonl", "judge_prompts.jsonl", "reference_answer*.jsonl"
_TEMPERATURES = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}
"""MT-Bench's own, by category; greedy for the others."""
_WITH_REFERENCE = ("math", "reasoning", "coding")
_ASKED_AGAIN = 3
"""Times a judge is asked whose reply has no rating in it."""
_AT_ONCE = 4
_GIVE_UP = 3
"""Answers in a row that could not be rated, after which the others are not tried."""


@dataclasses.dataclass(frozen=True)
class Conversation:
    """One of the eighty."""

    number: str
    category: str
    turns: tuple[str, str]
    reference: tuple[str, str] | None


@dataclasses.dataclass(frozen=True)
class Material:
    """Questions, and how the judge is asked."""

    rows: Rows
    conversations: tuple[Conversation, ...]
    prompts: dict[str, JudgePrompt]
    wording: str
    """Whose the judge's prompts are: ``mt_bench`` or ``balora``."""


def evaluate_mt_bench(session: Session, name: str = NAME) -> Record:
    """Have both turns answered, then rated.

    Returns:
        The result; beside every answer stands what the judge said of it.

    Raises:
        BALoraError: The model has no chat template, no judge was named (the answers are kept), or the judge gave no
            answer to some (the other ratings are kept).
    """
    material = read_material(session)
    conversations = session.limited(material.conversations)
    answers, wanted = _answer(session, material, conversations)
    judge = session.options.judge
    if judge is None:
        raise BALoraError(
            f"MT-Bench's answers are in {answers.path}, but no judge was named to rate them. Give --judge-url and --judge-model; "
            "the same command goes on from the answers."
        )
    ratings = _judgments(session, material, answers, judge)
    by_number = {conversation.number: conversation for conversation in conversations}
    _rate(session, Judge(judge), ratings, answers, wanted, by_number, material.prompts)
    about = {"data": material.rows.source, "judge": {"model": judge.model, "base_url": judge.base_url}}
    for sample in wanted:
        kept = answers.records[sample]
        ratings.records.setdefault(sample, {}).update(prompt=kept["prompt"], output=kept["output"])
    return ratings.finish(wanted, _scores(ratings, wanted, by_number), about)


def read_material(session: Session) -> Material:
    """Questions, reference answers and the judge's prompts: from MT-Bench's own folder, one file, or the hub.

    Raises:
        BALoraError: They cannot be read, or a question has not two turns.
    """
    place = session.options.data.get(NAME)
    folder = Path(place).expanduser() if place else None
    if folder is None or not folder.is_dir():
        rows = session.rows(NAME, _ORIGIN)
        return Material(rows, tuple(_conversation(row, None, rows) for row in rows.rows), OURS, "balora")
    table = read_table(folder / _QUESTIONS)
    rows = Rows(table.name, table.rows, table.columns)
    references = {}
    for path in sorted(folder.glob(_REFERENCES)):
        references.update({row["question_id"]: row["choices"][0]["turns"] for row in read_table(path).rows})
    conversations = tuple(_conversation(row, references.get(row.get("question_id")), rows) for row in rows.rows)
    own = folder / _PROMPTS
    prompts = prompts_from(read_table(own).rows) if own.is_file() else OURS
    return Material(rows, conversations, prompts, "mt_bench" if own.is_file() else "balora")


def _conversation(row: Record, reference: Sequence[str] | None, rows: Rows) -> Conversation:
    number = str(row.get("question_id", row.get("prompt_id")))
    turns, reference = row.get("turns", row.get("prompt")), reference or row.get("reference")
    if not isinstance(turns, list) or len(turns) != 2:
        raise BALoraError(f"Question {number} of {rows.source} has not two turns.")
    pair = (str(reference[0]), str(reference[1])) if reference and len(reference) == 2 else None
    return Conversation(number, str(row["category"]), (str(turns[0]), str(turns[1])), pair)


def _answer(session: Session, material: Material, conversations: Sequence[Conversation]) -> tuple[Journal, list[str]]:
    """Both turns of every conversation, the second on top of the first."""
    prompting = session.prompting(CHAT)
    asked = session.options.temperature
    temperatures = {c.number: _TEMPERATURES.get(c.category, 0.0) if asked is None else asked for c in conversations}
    plan = session.sampling(1024, _stops(prompting), temperature=0.0)
    # Some categories sample though the plan is greedy, so seed and top_p are always part of what the answers are.
    drawn = {"top_p": plan.top_p, "seed": plan.seed, "temperature": asked if asked is not None else _TEMPERATURES}
    journal = session.journal(
        f"{NAME}.answers",
        material.rows,
        prompting=prompting.describe(),
        generation={**plan.describe(), **drawn},
    )
    tokenizer = session.tokenizer
    for turn in (1, 2):
        for temperature in sorted(set(temperatures.values())):
            requests = [
                Request(
                    f"{c.number}/{turn}",
                    conversation_text(prompting, tokenizer, _history(journal, c, turn)),
                    (c.reference or ("", ""))[turn - 1],
                )
                for c in conversations
                if temperatures[c.number] == temperature
            ]
            sampling = session.sampling(1024, _stops(prompting), temperature=temperature)
            session.write_answers(journal, requests, prompting, sampling)
    return journal, [f"{c.number}/{turn}" for c in conversations for turn in (1, 2)]


def _history(journal: Journal, conversation: Conversation, turn: int) -> list[Message]:
    first = [{"role": "user", "content": conversation.turns[0]}]
    if turn == 1:
        return first
    answer = str(journal.records[f"{conversation.number}/1"]["output"])
    return [
        *first,
        {"role": "assistant", "content": answer},
        {"role": "user", "content": conversation.turns[1]},
    ]


def conversation_text(prompting: Prompting, tokenizer: Any, messages: Sequence[Message]) -> str:
    """A conversation up to the next answer: by the chat template, or by repeating the template of single questions.

    The introduction of Alpaca's form is said once.
    """
    if tokenizer is None:  # reference answers: nobody reads it
        return "\n\n".join(message["content"] for message in messages)
    if prompting.template == CHAT:
        return prompting.chat(tokenizer, messages)
    text = ""
    for message in messages:
        if message["role"] == "assistant":
            text += message["content"].strip() + "\n\n"
            continue
        asked = prompting.text(tokenizer, message["content"])
        text += asked.split("\n\n", 1)[1] if text and prompting.template == "alpaca" else asked
    return text


def _stops(prompting: Prompting) -> tuple[str, ...]:
    return ("\n### Instruction",) if prompting.template == "alpaca" else ()


def _judgments(session: Session, material: Material, answers: Journal, judge: JudgeOptions) -> Journal:
    """The journal of ratings: of these answers, by this judge, asked in this wording."""
    wording = json.dumps([[name, p.system, p.template] for name, p in sorted(material.prompts.items())])
    identity = {
        **answers.identity,
        "judge": {"model": judge.model, "max_tokens": judge.max_tokens},
        "judge prompts": f"{material.wording} {hashlib.sha256(wording.encode()).hexdigest()[:16]}",
    }
    return Journal(session.folder, NAME, identity)


def _rate(
    session: Session,
    judge: Judge,
    ratings: Journal,
    answers: Journal,
    wanted: Sequence[str],
    conversations: dict[str, Conversation],
    prompts: dict[str, JudgePrompt],
) -> None:
    """Have every answer rated that has no rating, several at once; what is rated is kept, whatever happens to the rest."""
    pending = ratings.missing(wanted, "rating")
    session.say(f"  {len(wanted) - len(pending):,} of {len(wanted):,} answers are rated, {len(pending):,} to go")
    failures: list[str] = []
    with ThreadPoolExecutor(session.options.workers or _AT_ONCE) as pool:
        futures: dict[Future[Record], str] = {}
        for sample in pending:
            messages = _question(conversations[sample.split("/")[0]], int(sample[-1]), answers, prompts)
            futures[pool.submit(_rating, judge, messages)] = sample
        in_a_row = 0
        try:
            for future in as_completed(futures):
                try:
                    ratings.add(futures[future], **future.result())
                    in_a_row = 0
                except CancelledError:
                    failures.append(failures[-1])
                except JudgeUnavailable as failure:
                    failures.append(str(failure))
                    in_a_row += 1
                    if in_a_row == _GIVE_UP:
                        pool.shutdown(wait=False, cancel_futures=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)  # a refusal concerns all of them
            raise
    if failures:
        raise BALoraError(
            f"{len(failures)} of {len(wanted)} answers could not be rated ({failures[-1]}). The ratings there are have been kept; "
            "the same command asks for the missing ones."
        )


def _question(
    conversation: Conversation, turn: int, answers: Journal, prompts: dict[str, JudgePrompt]
) -> list[Message]:
    first = str(answers.records[f"{conversation.number}/1"]["output"])
    needs = conversation.category in _WITH_REFERENCE and conversation.reference is not None
    references = (
        dict(zip(("ref_answer_1", "ref_answer_2"), conversation.reference or (), strict=False)) if needs else {}
    )
    kind = "single-math-v1" if needs else "single-v1"
    if turn == 1:
        return prompts[kind].messages(question=conversation.turns[0], answer=first, **references)
    return prompts[f"{kind}-multi-turn"].messages(
        question_1=conversation.turns[0],
        answer_1=first,
        question_2=conversation.turns[1],
        answer_2=str(answers.records[f"{conversation.number}/2"]["output"]),
        **references,
    )


def _rating(judge: Judge, messages: list[Message]) -> Record:
    """What the judge says; without ``rating`` where it will not give one."""
    for _ in range(_ASKED_AGAIN):
        reply = judge.ask(messages)
        rating = rating_in(reply)
        if rating is not None:
            return {"judgment": reply, "rating": rating}
    return {"judgment": reply}


def _scores(ratings: Journal, wanted: Sequence[str], conversations: dict[str, Conversation]) -> Record:
    def mean(turns: tuple[str, ...], category: str | None = None) -> float | None:
        found = [
            ratings.records[sample]["rating"]
            for sample in wanted
            if sample.split("/")[1] in turns
            and "rating" in ratings.records[sample]
            and category in (None, conversations[sample.split("/")[0]].category)
        ]
        return sum(found) / len(found) if found else None

    categories = sorted({conversation.category for conversation in conversations.values()})
    return {
        "main": "first_turn",
        "first_turn": mean(("1",)),
        "second_turn": mean(("2",)),
        "both_turns": mean(("1", "2")),
        "rated": sum("rating" in ratings.records[sample] for sample in wanted),
        "unrated": len(ratings.missing(wanted, "rating")),
        "by_category": {c: {"first_turn": mean(("1",), c), "second_turn": mean(("2",), c)} for c in categories},
    }


__all__ = ["Conversation", "evaluate_mt_bench", "read_material"]
