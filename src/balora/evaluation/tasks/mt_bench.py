"""MT-Bench: the model answers conversations of two turns, and a judge rates the answers.

Reference: Zheng et al., Judging LLM-as-a-judge with MT-Bench and Chatbot Arena, 2023. The paper reports the first turn.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from balora.data.files.readers import read_table
from balora.errors import BALoraError
from balora.evaluation.context import EvaluationContext, Request
from balora.evaluation.data import HubDataset, Rows, read_rows
from balora.evaluation.options import JudgeOptions
from balora.evaluation.prompting import CHAT, Message, Prompting
from balora.evaluation.results import Journal, Record, count_answers
from balora.evaluation.scoring.judge import (
    DEFAULT_PROMPTS,
    Judge,
    JudgeUnavailable,
    parse_rating,
    public_url,
    read_prompts,
)
from balora.evaluation.tasks.task import Task
from balora.turns import from_first

_HUB = HubDataset("HuggingFaceH4/mt_bench_prompts", splits=("train",))
_TEMPERATURES = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}
"""MT-Bench's temperature by category; the other categories are greedy."""
_CATEGORIES_WITH_REFERENCE = ("math", "reasoning", "coding")
_MAX_NEW_TOKENS = 1024
_JUDGE_ATTEMPTS = 3
"""Requests per answer if the judge's reply has no rating."""
_PARALLEL_REQUESTS = 4
_MAX_FAILURES = 3
"""Consecutive answers that could not be rated, after which the others are not tried."""


@dataclasses.dataclass(frozen=True)
class Conversation:
    """Two questions and their reference answers."""

    number: str
    category: str
    turns: tuple[str, str]
    reference: tuple[str, str] | None

    def sample(self, turn: int) -> str:
        """Return the name of an answer in the journals."""
        return f"{self.number}/{turn}"


class MTBenchTask(Task):
    """MT-Bench."""

    def __init__(self, context: EvaluationContext, name: str) -> None:
        super().__init__(context, name)
        self.prompts, self.prompts_source = DEFAULT_PROMPTS, "balora"
        references: dict[Any, Sequence[str]] = {}
        location = context.options.data.get(name)
        folder = Path(location).expanduser() if location else None
        if folder is None or not folder.is_dir():
            self.rows = read_rows(location, _HUB)
        else:
            table = read_table(folder / "question.jsonl")
            self.rows = Rows(table.name, table.rows, table.columns)
            for path in sorted(folder.glob("reference_answer*.jsonl")):
                references.update({row["question_id"]: row["choices"][0]["turns"] for row in read_table(path).rows})
            prompts = folder / "judge_prompts.jsonl"
            if prompts.is_file():
                self.prompts, self.prompts_source = read_prompts(read_table(prompts).rows), "mt_bench"
        conversations = [
            _conversation(row, references.get(row.get("question_id")), self.rows.source) for row in self.rows.rows
        ]
        self.conversations = conversations[: context.options.limit]
        self.samples = {talk.sample(turn): (talk, turn) for talk in self.conversations for turn in (1, 2)}

    def evaluate(self) -> Record:
        """Answer both turns, then have the answers rated. If ratings are missing, raise; the journals keep the answers."""
        answers = self._answer()
        return from_first(lambda: self._result(answers))

    def _result(self, answers: Journal) -> Record:
        """Have the answers rated, write the result file, and return its content."""
        counts = count_answers(answers.records[sample] for sample in self.samples)
        self.context.warn_about(counts, len(self.samples))
        options = self.context.options.judge
        if options is None:
            raise BALoraError(
                f"MT-Bench's answers are in {answers.path}, but no judge was named to rate them. Give --judge-url and "
                "--judge-model; the same command then rates these answers."
            )
        ratings = self._open_ratings(answers, options)
        self._rate(Judge(options), ratings, answers)
        for sample in self.samples:
            record = answers.records[sample]
            ratings.records.setdefault(sample, {}).update(prompt=record["prompt"], output=record["output"])
        judge = {"model": options.model, "base_url": public_url(options.base_url)}
        return ratings.finish(
            self.samples, {**self._scores(ratings), **counts}, {"data": self.rows.source, "judge": judge}
        )

    def _answer(self) -> Journal:
        """Answer both turns of every conversation, the second after the first."""
        context = self.context
        prompting = context.prompting(CHAT)
        stops = ("\n### Instruction",) if prompting.template == "alpaca" else ()
        temperature = context.options.temperature
        temperatures = {
            talk.number: _TEMPERATURES.get(talk.category, 0.0) if temperature is None else temperature
            for talk in self.conversations
        }
        greedy = context.sampling(_MAX_NEW_TOKENS, stops, temperature=0.0)
        journal = context.journal(
            f"{self.name}.answers",
            data=self.rows.digest,
            prompting=dataclasses.asdict(prompting),
            generation={
                **greedy.describe(sampled=temperature != 0),  # some categories are sampled by default
                "top_p": greedy.top_p,
                "seed": greedy.seed,
                "temperature": _TEMPERATURES if temperature is None else temperature,
            },
        )
        tokenizer = context.tokenizer
        for turn in (1, 2):
            for value in sorted(set(temperatures.values())):
                requests = [
                    Request(
                        talk.sample(turn),
                        conversation_text(prompting, tokenizer, _messages(journal, talk, turn)),
                        (talk.reference or ("", ""))[turn - 1],
                    )
                    for talk in self.conversations
                    if temperatures[talk.number] == value
                ]
                context.answer(journal, requests, prompting, context.sampling(_MAX_NEW_TOKENS, stops, value))
        return journal

    def _open_ratings(self, answers: Journal, judge: JudgeOptions) -> Journal:
        """Open the journal of ratings. Its identity is that of the answers, the judge and the judge's prompts."""
        prompts = json.dumps([[name, prompt.system, prompt.template] for name, prompt in sorted(self.prompts.items())])
        identity = {
            **answers.identity,
            "judge": {"model": judge.model, "max_tokens": judge.max_tokens},
            "judge prompts": f"{self.prompts_source} {hashlib.sha256(prompts.encode()).hexdigest()[:16]}",
        }
        return Journal(self.context.folder, self.name, identity)

    def _rate(self, judge: Judge, ratings: Journal, answers: Journal) -> None:
        """Have the answers without a rating rated, several in parallel. Each rating is written as soon as it arrives."""
        pending = ratings.missing(self.samples, "rating")
        total = len(self.samples)
        self.context.say(f"  {total - len(pending):,} of {total:,} answers are rated, {len(pending):,} to go")
        failures: list[str] = []
        consecutive = 0
        workers = self.context.options.workers or _PARALLEL_REQUESTS
        with self.context.progress("ratings", len(pending)) as add, ThreadPoolExecutor(workers) as pool:
            futures: dict[Future[Record], str] = {
                pool.submit(_rating, judge, self._judge_messages(sample, answers)): sample for sample in pending
            }
            try:
                for future in as_completed(futures):
                    add(1)
                    try:
                        ratings.add(futures[future], **future.result())
                        consecutive = 0
                    except CancelledError:
                        failures.append(failures[-1])
                    except JudgeUnavailable as failure:
                        failures.append(str(failure))
                        consecutive += 1
                        if consecutive == _MAX_FAILURES:
                            pool.shutdown(wait=False, cancel_futures=True)
            except BaseException:
                pool.shutdown(cancel_futures=True)  # a rejected request means that the others would be rejected too
                raise
        if failures:
            raise BALoraError(
                f"{len(failures)} of {total} answers could not be rated ({failures[-1]}). The other ratings are kept; the same "
                "command asks for the missing ones."
            )

    def _judge_messages(self, sample: str, answers: Journal) -> list[Message]:
        """Return the messages that ask the judge to rate an answer."""
        conversation, turn = self.samples[sample]
        kind, references = "single-v1", {}
        if conversation.category in _CATEGORIES_WITH_REFERENCE and conversation.reference is not None:
            kind = "single-math-v1"
            references = dict(zip(("ref_answer_1", "ref_answer_2"), conversation.reference, strict=True))
        first, second = (str(answers.records[conversation.sample(number)]["output"]) for number in (1, 2))
        questions = conversation.turns
        if turn == 1:
            return self.prompts[kind].messages(question=questions[0], answer=first, **references)
        values = {"question_1": questions[0], "answer_1": first, "question_2": questions[1], "answer_2": second}
        return self.prompts[f"{kind}-multi-turn"].messages(**values, **references)

    def _scores(self, ratings: Journal) -> Record:
        def mean(*turns: int, category: str | None = None) -> float | None:
            values = [
                ratings.records[sample]["rating"]
                for sample, (conversation, turn) in self.samples.items()
                if turn in turns and "rating" in ratings.records[sample] and category in (None, conversation.category)
            ]
            return sum(values) / len(values) if values else None

        categories = sorted({conversation.category for conversation in self.conversations})
        unrated = len(ratings.missing(self.samples, "rating"))
        return {
            "main": "first_turn",
            "first_turn": mean(1),
            "second_turn": mean(2),
            "both_turns": mean(1, 2),
            "rated": len(self.samples) - unrated,
            "unrated": unrated,
            "by_category": {
                name: {"first_turn": mean(1, category=name), "second_turn": mean(2, category=name)}
                for name in categories
            },
        }


def _conversation(row: Record, reference: Sequence[str] | None, source: str) -> Conversation:
    number = str(row.get("question_id", row.get("prompt_id")))
    turns, reference = row.get("turns", row.get("prompt")), reference or row.get("reference")
    if not isinstance(turns, list) or len(turns) != 2:
        raise BALoraError(f"Question {number} of {source} does not have two turns.")
    pair = (str(reference[0]), str(reference[1])) if reference and len(reference) == 2 else None
    return Conversation(number, str(row["category"]), (str(turns[0]), str(turns[1])), pair)


def _messages(answers: Journal, conversation: Conversation, turn: int) -> list[Message]:
    """Return the conversation up to the question of a turn."""
    first = [{"role": "user", "content": conversation.turns[0]}]
    if turn == 1:
        return first
    answer = str(answers.records[conversation.sample(1)]["output"])
    return [*first, {"role": "assistant", "content": answer}, {"role": "user", "content": conversation.turns[1]}]


def conversation_text(prompting: Prompting, tokenizer: Any, messages: Sequence[Message]) -> str:
    """Return a conversation up to the next answer, by the chat template or by repeating a template of single questions.

    The introduction of Alpaca's template is not repeated.
    """
    if tokenizer is None:  # reference answers: no model reads the text
        return "\n\n".join(message["content"] for message in messages)
    if prompting.template == CHAT:
        return prompting.chat(tokenizer, messages)
    text = ""
    for message in messages:
        if message["role"] == "assistant":
            text += message["content"].strip() + "\n\n"
            continue
        question = prompting.text(tokenizer, message["content"])
        text += question.split("\n\n", 1)[1] if text and prompting.template == "alpaca" else question
    return text


def _rating(judge: Judge, messages: list[Message]) -> Record:
    """Return the judge's reply and its rating; without ``rating`` if no reply has one."""
    for _ in range(_JUDGE_ATTEMPTS):
        reply = judge.ask(messages)
        if (rating := parse_rating(reply)) is not None:
            return {"judgment": reply, "rating": rating}
    return {"judgment": reply}
