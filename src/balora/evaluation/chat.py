"""Talk to a model, and to the pre-trained model beside it: prompts as in training, history, streaming."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import LogitsProcessorList
from transformers.generation.streamers import BaseStreamer

from balora.data.special_text import has_marks, reader_of_marks
from balora.errors import BALoraError
from balora.evaluation.engines.next_token import NextToken
from balora.evaluation.engines.transformers import sample_seed
from balora.evaluation.model_under_test import ModelUnderTest
from balora.evaluation.prompting import CHAT, Message, Prompting, prompting_for
from balora.loading.pretrained import max_positions
from balora.loading.trained import load_untrained
from balora.models.decoding import PLAIN_DECODING
from balora.teacher.pretrained import PretrainedTeacher

BASE, TUNED = "base", "tuned"
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|return|>", "<turn|>")
"""Tokens that end a turn in the common chat templates and need not be the tokenizer's end token."""
_INCOMPLETE = "\ufffd"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatSettings:
    """Settings of the answers."""

    max_new_tokens: int = 512
    temperature: float = 0.7
    """Sampling temperature; 0 is greedy."""
    top_p: float = 0.95
    repetition_penalty: float = 1.0
    seed: int = 42
    """Random seed. Base and tuned model draw with the same numbers."""

    def __post_init__(self) -> None:
        rules = (
            (self.max_new_tokens >= 1, "max_new_tokens must be at least 1"),
            (self.temperature >= 0, "temperature must be at least 0"),
            (0 < self.top_p <= 1, "top_p must be above 0 and at most 1"),
            (self.repetition_penalty > 0, "repetition_penalty must be above 0"),
        )
        for holds, message in rules:
            if not holds:
                raise BALoraError(f"{message}.")


class Chat:
    """A conversation with a model and, if there is one, with the pre-trained model under it. Each has its own history.

    Args:
        model: A run, a plain model or a plain adapter, not loaded yet.
        device: Device; default a GPU if there is one.
        with_base: Whether the pre-trained model answers, too.
        system: System message; it needs a chat template.
        template: Prompt format; default that of the training, for a plain model its chat template.

    Raises:
        BALoraError: The model cannot be loaded, does not write text, or has no chat template for the system message.
    """

    def __init__(
        self,
        model: ModelUnderTest,
        *,
        device: str | None = None,
        with_base: bool = True,
        system: str | None = None,
        template: str | None = None,
    ) -> None:
        self.loaded = model.load(device)
        if self.loaded.task not in ("generation", "seq2seq"):
            raise BALoraError(
                f"{model.name} is a model for {self.loaded.task}, which writes no text. Measure it with `balora evaluate`."
            )
        self.prompting = self._choose_prompting(model, template)
        self.histories: dict[str, list[Message]] = {}
        self._sides = {TUNED: self._tuned}
        base = self._find_base(model) if with_base else None
        if base is not None:
            self._sides = {BASE: base, TUNED: self._tuned}
        self.notes: list[str] = []
        """Remarks about the last question, such as turns that did not fit."""
        self._turn = 0
        self.system: str | None = None
        self.reset(system)

    @property
    def sides(self) -> tuple[str, ...]:
        """Names of the models that answer, the pre-trained one first."""
        return tuple(self._sides)

    @property
    def keeps_history(self) -> bool:
        """Whether earlier turns are part of the prompt. Other formats are answered one prompt at a time, as in training."""
        return self.prompting.template == CHAT

    def describe_format(self) -> str:
        """Describe the prompt format in a few words."""
        template = self.prompting.template
        names = {CHAT: "the chat template", "alpaca": "Alpaca's template", "none": "the text as it is"}
        return names.get(template, f"the template {template!r}") + (
            "" if self.keeps_history else ", one prompt at a time"
        )

    def reset(self, system: str | None = None) -> None:
        """Forget all turns, and set the system message."""
        if system and not self.keeps_history:
            raise BALoraError(
                f"A system message needs a chat template, and this model is prompted with {self.describe_format()}."
            )
        self.system, self._turn = system, 0
        first = [{"role": "system", "content": system}] if system else []
        self.histories = {side: list(first) for side in self._sides}

    def ask(self, side: str, question: str, settings: ChatSettings, write: Callable[[str], None]) -> str:
        """Answer a question with one of the models.

        Args:
            side: Name from `sides`.
            question: Text of the user.
            settings: Settings of the answer.
            write: Function that gets the parts of the answer as they are generated.

        Returns:
            The answer. A KeyboardInterrupt ends it early; what was written is kept.
        """
        self.notes = []
        ids = self._prompt(side, question, settings)
        streamer = _Streamer(self.loaded.target_tokenizer or self.loaded.tokenizer, write)
        with self._sides[side]() as model, contextlib.suppress(KeyboardInterrupt):
            self._generate(model, ids, settings, streamer)
        answer = streamer.finish()
        if self.keeps_history:
            turn = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            self.histories[side] += turn
        return answer

    def next_turn(self) -> None:
        """Count a turn: the next answers are drawn with other random numbers."""
        self._turn += 1

    def _choose_prompting(self, model: ModelUnderTest, template: str | None) -> Prompting:
        tokenizer, config = self.loaded.tokenizer, model.settings
        if template is None and config is not None and config.data.form == "text":
            return Prompting("none", "")
        default = CHAT if tokenizer.chat_template and self.loaded.task == "generation" else "none"
        return prompting_for(template, config, default, "")

    def _find_base(self, model: ModelUnderTest) -> Callable[[], contextlib.AbstractContextManager[Any]] | None:
        """Return what makes the pre-trained model: initial values, a disabled adapter, or a second model."""
        tuned: Any = self.loaded.model
        if model.adapter is not None:

            @contextlib.contextmanager
            def disabled() -> Iterator[Any]:
                with tuned.disable_adapter():
                    yield tuned

            return disabled
        if model.saved is None:
            return None
        if model.saved.method.form == "model":
            untrained = load_untrained(model.saved.folder).to(self.loaded.device)
            return lambda: contextlib.nullcontext(untrained)
        teacher = PretrainedTeacher(tuned, model.saved.initial.values)

        @contextlib.contextmanager
        def initial() -> Iterator[Any]:
            with teacher.active():
                yield tuned

        return initial

    def _tuned(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext(self.loaded.model)

    def _prompt(self, side: str, question: str, settings: ChatSettings) -> list[int]:
        """Return the tokens of the prompt. The oldest turns are left out if they do not fit."""
        limit = max_positions(self.loaded.model.config)  # type: ignore[arg-type]
        room = None if limit is None else limit - min(settings.max_new_tokens, limit // 2)
        history = list(self.histories[side])
        first = 1 if history and history[0]["role"] == "system" else 0
        dropped = 0
        while True:
            ids = self._tokens(history, question)
            if room is None or len(ids) <= room:
                break
            if len(history) - first < 2:
                ids = ids[-room:]
                self.notes.append(f"The beginning of the prompt was cut off: the model takes {limit:,} tokens.")
                break
            del history[first : first + 2]
            dropped += 1
        if dropped:
            self.notes.append(f"The {dropped} oldest turns were left out: the model takes {limit:,} tokens.")
        return ids

    def _tokens(self, history: list[Message], question: str) -> list[int]:
        tokenizer = self.loaded.tokenizer
        if self.keeps_history:
            text = self.prompting.chat(tokenizer, [*history, {"role": "user", "content": question}])
            return self.prompting.tokens(tokenizer, text)
        text = self.prompting.text(tokenizer, question)
        if self.loaded.task == "seq2seq":
            reader, (text,) = reader_of_marks(tokenizer, [text]) if has_marks([text]) else (tokenizer, [text])
            return list(reader(text)["input_ids"])
        return self.prompting.tokens(tokenizer, text)

    def _generate(self, model: Any, ids: list[int], settings: ChatSettings, streamer: _Streamer) -> None:
        device, config = self.loaded.device, model.config
        decoder = self.loaded.target_tokenizer or self.loaded.tokenizer
        limit, room = settings.max_new_tokens, max_positions(config)
        if room is not None:
            limit = max(1, min(limit, room - (1 if config.is_encoder_decoder else len(ids))))
        inputs = torch.tensor([ids], device=device)
        drawn = NextToken([sample_seed(settings.seed, str(self._turn))], settings.temperature, settings.top_p)
        options: dict[str, Any] = {**PLAIN_DECODING, "repetition_penalty": settings.repetition_penalty}
        # `NextToken` draws. None: the model's own sampling defaults must not apply.
        options |= {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "num_beams": 1}
        with torch.inference_mode():
            model.generate(
                input_ids=inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=limit,
                eos_token_id=_end_tokens(model, decoder, in_template=self.keeps_history) or None,
                pad_token_id=decoder.pad_token_id,
                logits_processor=LogitsProcessorList([drawn]),
                streamer=streamer,
                use_cache=True,
                **options,
            )


def _end_tokens(model: Any, tokenizer: Any, *, in_template: bool) -> list[int]:
    """Return the tokens that end an answer: the model's and the tokenizer's, and those that end a turn of the template."""
    own = getattr(model.generation_config, "eos_token_id", None)
    found = list(own) if isinstance(own, list | tuple) else [own]
    found.append(tokenizer.eos_token_id)
    if in_template:
        template, vocabulary = str(tokenizer.chat_template), tokenizer.get_vocab()
        found += [vocabulary[token] for token in _TURN_ENDS if token in template and token in vocabulary]
    return list(dict.fromkeys(int(token) for token in found if token is not None))


class _Streamer(BaseStreamer):
    """Turn the tokens that ``generate`` hands over into text, without half characters."""

    def __init__(self, tokenizer: Any, write: Callable[[str], None]) -> None:
        self._tokenizer, self._write = tokenizer, write
        self._ids: list[int] = []
        self._written = ""
        self._begun = False

    def put(self, value: torch.Tensor) -> None:
        """Take the next tokens; the first ones are the prompt."""
        if not self._begun:
            self._begun = True
            return
        self._ids += value.flatten().tolist()
        text = str(self._tokenizer.decode(self._ids, skip_special_tokens=True))
        if not text.endswith(_INCOMPLETE):
            self._send(text)

    def end(self) -> None:
        """Do nothing; `finish` also works after an interrupt."""

    def finish(self) -> str:
        """Send the rest and return the whole text."""
        self._send(str(self._tokenizer.decode(self._ids, skip_special_tokens=True)))
        return self._written

    def _send(self, text: str) -> None:
        if text.startswith(self._written) and text != self._written:
            self._write(text[len(self._written) :])
            self._written = text
