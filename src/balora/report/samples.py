"""Answers of the pre-trained model and of every method to the same prompts, decoded greedily."""

import dataclasses
import gc
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from balora.config.run_config import RunConfig
from balora.data.conversations.messages import read_conversation
from balora.data.prompts import encode_prompt, render_prompt, separator_of, template_of
from balora.data.special_text import Marker, has_marks, reader_of_marks
from balora.data.streaming import load_run_examples
from balora.errors import BALoraError
from balora.evaluation.engines.transformers import Sampling, TransformersGenerator
from balora.evaluation.model_under_test import LoadedModel, ModelUnderTest
from balora.evaluation.prompting import CHAT, Prompting
from balora.experiments.compare.evaluation import Say
from balora.loading.trained import load_untrained
from balora.report.sections import Run

MAX_NEW_TOKENS = 128
_BATCH_SIZE = 4
_COMPARABLE = (
    *("model", "revision", "task", "dtype"),
    *("data.prompt", "data.response", "data.messages", "data.text", "data.train", "data.eval"),
)
"""Settings that must be equal for the answers of two runs to appear side by side."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """Prompt with the label and the text of every model's answer, the pre-trained model first."""

    prompt: str
    reference: str
    answers: list[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class _Question:
    """Row of the data as a prompt."""

    prompt: str
    input: str
    messages: list[dict[str, Any]]
    reference: str
    context: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Further variables of the chat template, such as ``tools``."""


def generate_samples(runs: Iterable[Run], count: int, say: Say) -> tuple[list[Sample], list[str]]:
    """Generate samples, and warnings about models that cannot be loaded.

    Only generation tasks have samples. The first finished run of each configuration answers the first ``count`` prompts of the
    evaluation rows. Runs with the same model and data appear side by side.
    """
    chosen: dict[str, Run] = {}
    for run in runs:
        if run.row.status == "finished" and run.task in ("generation", "seq2seq"):
            chosen.setdefault(run.label, run)
    samples: list[Sample] = []
    problems: list[str] = []
    for _, group in itertools.groupby(sorted(chosen.values(), key=_comparable), key=_comparable):
        members = sorted(group, key=lambda run: run.row.regularized)  # plain methods next to the pre-trained model
        samples += _group_samples(members, count, problems, say)
    return samples, problems


def _comparable(run: Run) -> str:
    return repr([(key, run.settings.get(key)) for key in _COMPARABLE])


def _group_samples(runs: Sequence[Run], count: int, problems: list[str], say: Say) -> list[Sample]:
    questions: list[_Question] = []
    columns: list[tuple[str, list[str]]] = []
    for run in runs:
        say(f"Samples of {run.label} ...")
        try:
            model = ModelUnderTest(str(run.directory))
            loaded, config = model.load(None), model.settings
            assert config is not None, "a run directory has a config"
            questions = questions or _read_questions(config, count)
            if not columns:
                untrained = dataclasses.replace(loaded, model=load_untrained(run.directory).to(loaded.device))
                columns.append(("pre-trained", _answers(untrained, config, questions)))
                del untrained
            columns.append((run.label, _answers(loaded, config, questions)))
            del loaded
            gc.collect()
        except (BALoraError, OSError) as error:
            problems.append(f"There are no samples of {run.label}: {error}")
    return [
        Sample(_prompt_text(question), question.reference, [(label, answers[number]) for label, answers in columns])
        for number, question in enumerate(questions)
    ]


def _read_questions(config: RunConfig, count: int) -> list[_Question]:
    """Read the first evaluation rows, or the first training rows if there are none."""
    examples = load_run_examples(config.data, config.task, config.seed)
    source = examples.eval or examples.train
    rows: list[dict[str, Any]] = list(source.select(range(min(count, len(source)))))
    if examples.form == "messages":
        return [_chat_question(row) for row in rows]
    if examples.form == "text":  # the model continues the first half of the text
        middles = [(row["text"], len(row["text"]) // 2) for row in rows]
        return [_Question(text[:middle], "", [], text[middle:]) for text, middle in middles]
    return [_Question(row["prompt"], row["input"] or "", [], row["response"]) for row in rows]


def _chat_question(row: dict[str, Any]) -> _Question:
    """Ask for the last message of the assistant."""
    messages, context = read_conversation(row)
    last = max(number for number, message in enumerate(messages) if message["role"] == "assistant")
    return _Question("", "", messages[:last], messages[last]["content"], context)


def _answers(loaded: LoadedModel, config: RunConfig, questions: Sequence[_Question]) -> list[str]:
    """Generate a model's answers, with the prompt format of its training."""
    prompts = [_tokenize(loaded, config, question) for question in questions]
    outputs = dict(TransformersGenerator(loaded, _BATCH_SIZE).generate(prompts, Sampling(MAX_NEW_TOKENS)))
    return [outputs[number].text + ("" if outputs[number].ended else " …") for number in range(len(questions))]


def _tokenize(loaded: LoadedModel, config: RunConfig, question: _Question) -> list[int]:
    if question.messages:
        chat = Prompting(CHAT)
        return chat.tokens(loaded.tokenizer, chat.chat(loaded.tokenizer, question.messages, question.context))
    prompt, given = Marker(loaded.tokenizer, as_tokens=config.data.special_tokens).row(
        [question.prompt, question.input]
    )
    if config.data.form == "text":
        return encode_prompt(loaded.tokenizer, prompt)
    template = template_of(config.data)
    text = render_prompt(template, prompt, given)
    if config.task == "seq2seq":
        tokenizer, (text,) = (
            reader_of_marks(loaded.tokenizer, [text]) if has_marks([text]) else (loaded.tokenizer, [text])
        )
        return list(tokenizer(text)["input_ids"])
    return encode_prompt(loaded.tokenizer, text + separator_of(template, config.data.separator))


def _prompt_text(question: _Question) -> str:
    if question.messages:
        return "\n\n".join(f"{message['role']}: {message['content']}" for message in question.messages)
    return question.prompt + (f"\n\n{question.input}" if question.input else "")
