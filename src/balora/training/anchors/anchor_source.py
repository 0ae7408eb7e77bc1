"""Where a run's anchors come from: its own folder if they are there, else a text, given rows, or the model itself."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock
from torch.utils.data import IterableDataset

from balora.anchoring.responses import draw_sources, sample_responses
from balora.anchoring.rows import FILE, AnchorRows, Row, rows_per_step, vocabulary_digest
from balora.anchoring.sampling import chat_turn, is_degenerate, sample_sequences, start_tokens
from balora.anchoring.vllm_sampling import sample_through_vllm
from balora.anchors import Anchors
from balora.data.anchor_texts import read_anchor_texts
from balora.data.prompts import bare_ids, start_ids
from balora.data.special_text import Marker
from balora.errors import BALoraError, suggest_path
from balora.loading.pretrained import max_positions
from balora.methods.quantization.quantized_linear import QuantizedLinear
from balora.models.adapted_model import base_model_of
from balora.training.anchors.anchor_term import AnchorTerm
from balora.turns import divided_among_processes, from_first

logger = logging.getLogger("balora")
_WITHOUT_EFFECT_ON_ROWS = (
    *("weight", "budget", "control", "temperature", "every", "teacher_cache", "memory", "held_out", "measure_only"),
)
_ROW_SAMPLE = 1000
"""Rows whose lengths are read to estimate the tokens of a step."""


def make_anchor_term(trainer: Any, anchors: Anchors) -> AnchorTerm:
    """Return the anchors' term of a trainer whose model is in its initial state or can be put into it by its teacher."""
    args = trainer.args
    processes = trainer.accelerator.num_processes
    rows_of_step = trainer._train_batch_size * args.gradient_accumulation_steps * processes
    tokens = _mean_tokens(trainer.train_dataset, default=float(anchors.tokens))
    tokens_per_step = tokens * rows_of_step
    rows = _rows(trainer, anchors, tokens_per_step, processes)
    term = AnchorTerm(
        anchors,
        rows,
        trainer.step,
        tokens_per_step=tokens_per_step,
        pad_token=_pad_token(trainer),
        seed=args.seed,
        process=args.process_index,
        processes=processes,
    )
    term.cache_teacher()
    facts = term.facts()
    logger.info(
        "Anchors: %s rows from %s, %s held out, %s in each step; %s%s",
        facts["rows"], anchors.describe(), facts["held_out"], facts["per_step"],
        "only to measure" if anchors.measure_only
        else f"budget {anchors.budget:g} nats per token" if anchors.budget is not None else f"weight {anchors.weight:g}",
        f"; {facts['degenerate']} of them are loops" if facts.get("degenerate") else "",
    )  # fmt: skip
    return term


def text_rows(
    texts: Sequence[str], tokenizer: Any, tokens: int, count: int, seed: int, *, task: str, rendered: bool = False
) -> list[dict[str, list[int]]]:
    """Tokenize texts and draw ``count`` rows at random, the same for a seed.

    A text of a language model is cut into pieces of at most ``tokens`` tokens; one of a classifier is cut off. As in training
    data, the text of a special token is plain text, except in texts that a chat template has ``rendered``, which have their
    special tokens already.
    """
    rows: list[dict[str, list[int]]] = []
    if task in ("classification", "regression"):
        encoded = tokenizer(list(texts), truncation=True, max_length=tokens, verbose=False)
        names = [name for name in ("input_ids", "token_type_ids") if name in encoded]
        rows = [{name: list(encoded[name][at]) for name in names} for at in range(len(texts))]
    else:
        start = [] if rendered else start_ids(tokenizer)
        marker = Marker(tokenizer, as_tokens=rendered)
        for text in texts:
            ids = start + bare_ids(tokenizer, marker.row([text]))[0]
            rows += [
                {"input_ids": piece} for at in range(0, len(ids), tokens) if len(piece := ids[at : at + tokens]) >= 2
            ]
    if len(rows) > count:
        rows = [rows[i] for i in sorted(random.Random(f"anchors {seed}").sample(range(len(rows)), count))]
    return rows


def _rows(trainer: Any, anchors: Anchors, tokens_per_step: float, processes: int) -> AnchorRows:
    """Load the rows that the run's folder keeps, or make and keep them."""
    seed, folder = trainer.args.seed, Path(trainer.args.output_dir or ".")
    identity = _identity(anchors, seed)
    budget = anchors.budget is not None
    if anchors.rows is not None:
        control = max(min(anchors.control, len(anchors.rows) // 4), 1) if budget else None
        return AnchorRows(anchors.rows, anchors.held_out, seed, {"source": "given rows"}, control)
    if (folder / FILE).is_file():
        kept = AnchorRows.load(folder / FILE, anchors.held_out, seed, budget=budget)
        if kept.facts.get("identity") == identity:
            return kept
    with divided_among_processes():
        if anchors.generate is not None and trainer.anchor_store is None:
            made = _make(trainer, anchors, tokens_per_step, processes)  # every process samples a part
        else:
            made = from_first(lambda: _make(trainer, anchors, tokens_per_step, processes))
    facts: dict[str, Any] = {"source": anchors.describe(), "identity": identity, "settings": anchors.to_dict()}
    facts["tokenizer"] = vocabulary_digest(_tokenizer_of(trainer))
    if anchors.generate is not None:
        facts["model"] = getattr(base_model_of(trainer.model), "name_or_path", None)
    if anchors.generate is not None:
        facts["degenerate"] = sum(
            is_degenerate(list(row.get("labels" if trainer.task == "seq2seq" else "input_ids", ()))) for row in made
        )
    if len(made) < 2:
        raise BALoraError(
            f"anchor: {anchors.describe()} gives {len(made)} sequences of two tokens or more, and 2 are needed."
        )
    if budget:
        facts["control"] = anchors.control if anchors.generate is not None else _control_of(anchors, len(made))
    rows = AnchorRows(made, anchors.held_out, seed, facts, facts.get("control"))
    if trainer.args.should_save:
        rows.save(folder / FILE)
    return rows


def _control_of(anchors: Anchors, count: int) -> int:
    """Return the rows of a text that steer a budget: those beyond the asked number, or at most a quarter of all."""
    return max(min(anchors.control, max(count // 4, (count - anchors.sequences) // 2)), 1)


def _sample(trainer: Any, tokenizer: Any, anchors: Anchors, count: int) -> list[Row]:
    if trainer.accelerator.num_processes == 1:  # others would wait for it, and use its GPU's memory
        found = sample_through_vllm(trainer.model, tokenizer, count, anchors.tokens, trainer.args.seed)
        if found is not None:
            logger.info("Anchors: sampled through vLLM")
            return list(found)
    with trainer.teacher.active():
        return list(sample_sequences(trainer.model, tokenizer, count, anchors.tokens, trainer.args.seed))


def _sources(trainer: Any, count: int) -> list[list[int]]:
    """Draw inputs of the task, which the model answers."""
    rows = trainer.train_dataset
    if rows is None or isinstance(rows, IterableDataset) or not len(rows):
        raise BALoraError(
            "anchor: generated takes the inputs of the training rows, and they have no length. Give rows as anchor."
        )
    return [list(rows[number]["input_ids"]) for number in draw_sources(rows, count, trainer.args.seed)]


def _answer(trainer: Any, tokenizer: Any, anchors: Anchors, sources: list[list[int]]) -> list[Row]:
    with trainer.teacher.active():
        return list(sample_responses(trainer.model, tokenizer, sources, anchors.tokens, trainer.args.seed))


def _shared(trainer: Any, anchors: Anchors, count: Any, sample: Callable[[], list[Row]]) -> Sequence[Row]:
    """Sample sequences, or read those that another run of the same comparison has sampled.

    The runs must have the same model, settings and seed, and need the same (``count``: a number, and the inputs if there are).
    """
    if trainer.anchor_store is None:
        return sample()
    model, seed = base_model_of(trainer.model), trainer.args.seed
    bits = next((module.bits for module in model.modules() if isinstance(module, QuantizedLinear)), None)
    writer = [getattr(model, "name_or_path", None), str(model.dtype), bits]
    digest = hashlib.sha256(json.dumps([_identity(anchors, seed), count, writer]).encode()).hexdigest()[:16]
    path = trainer.anchor_store / f"{digest}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):  # runs at the same time wait for the one that samples
        if path.is_file():
            logger.info("Anchors: read from %s", path)
            return AnchorRows.load(path, anchors.held_out, seed).rows
        rows = sample()
        AnchorRows(rows, anchors.held_out, seed, {"source": anchors.describe()}).save(path)
        return rows


def _kept_rows(anchors: Anchors, seed: int, model: Any) -> Sequence[Row]:
    """Read a file of anchors that a run or `balora teacher` kept; draw some of them if there are more than asked for."""
    path = Path(str(anchors.text)).expanduser()
    if not path.is_file():
        raise BALoraError(f"There is no file {path} (anchor.text).{suggest_path(path)}")
    kept = AnchorRows.load(path, anchors.held_out, seed)
    writer, name = kept.facts.get("model"), getattr(base_model_of(model), "name_or_path", None)
    if writer and name and Path(writer).name != Path(name).name:
        logger.warning("Anchors: %s was written by %s, and the model is %s.", path, writer, name)
    rows = kept.rows
    size = len(base_model_of(model).get_input_embeddings().weight)
    largest = max(max(row["input_ids"]) for row in rows)
    if largest >= size:
        raise BALoraError(
            f"{path} has token {largest}, and the model has {size:,} tokens: the anchors are another model's."
        )
    if len(rows) > _drawn_from_text(anchors):
        chosen = random.Random(f"anchors {seed}").sample(range(len(rows)), _drawn_from_text(anchors))
        rows = [rows[number] for number in sorted(chosen)]
    return rows


def _check_kept(path: Path, kept: AnchorRows, task: str, tokenizer: Any, config: Any) -> None:
    """Refuse anchors that another kind of model kept, and damaged ones."""
    if not all(row.get("input_ids") for row in kept.rows):
        raise BALoraError(
            f"{path} has a row without tokens (input_ids), so it is damaged. Name another source in anchor."
        )
    tokens = [token for row in kept.rows for token in (min(row["input_ids"]), max(row["input_ids"]))]
    longest = max(len(row["input_ids"]) for row in kept.rows)
    size, limit = getattr(config.get_text_config(), "vocab_size", None), max_positions(config)
    if task == "seq2seq":
        fits = all("labels" in row for row in kept.rows)
    else:  # the rows of a language model may have labels, one for each token; those of a classifier have none
        fits = all(len(row.get("labels", row["input_ids"])) == len(row["input_ids"]) for row in kept.rows)
        fits = fits and (task == "generation" or not any("labels" in row for row in kept.rows))
    problem = ""
    if min(tokens) < 0 or (size is not None and max(tokens) >= size):
        wrong = min(tokens) if min(tokens) < 0 else max(tokens)
        problem = f"has token {wrong}, and the model has {size:,} tokens"
    elif None not in (made := (kept.facts.get("tokenizer"), vocabulary_digest(tokenizer))) and made[0] != made[1]:
        problem = "was made with another tokenizer than the model's"
    elif limit is not None and longest > limit:
        problem = f"has an anchor of {longest:,} tokens, and the model reads at most {limit:,}"
    elif not fits:
        problem = f"has rows of another form than the task {task} needs"
    if problem:
        raise BALoraError(f"{path} {problem}: the anchors are another model's. Name another source in anchor.")


def check_anchors(anchors: Anchors | None, task: str, tokenizer: Any, config: Any) -> None:
    """Refuse anchors that a run cannot make, before it writes anything; a text is read for that.

    Args:
        anchors: The settings; None for none.
        task: Task of the run.
        tokenizer: Tokenizer of the model.
        config: Config of the model, for the length that it can read.

    Raises:
        BALoraError: The task has no such anchors, a sequence is longer than the model can read, or the text cannot be read.
    """
    if anchors is None or anchors.rows is not None:
        return
    positions = max_positions(config)
    turn = chat_turn(tokenizer) if anchors.generate is not None and task == "generation" else None
    # A sampled sequence follows the start token or the opening of a user's turn.
    before = 0 if anchors.generate is None else len(turn.opening) if turn else 1
    if positions is not None and anchors.tokens + before > positions:
        raise BALoraError(
            f"anchor.tokens is {anchors.tokens:,}, and the model reads at most {positions:,} tokens"
            f"{f', {before} of them before the sampled ones' if before else ''}. Set anchor.tokens to "
            f"{max(positions - before, 1):,} or less."
        )
    if anchors.generate is not None:
        if task not in ("generation", "seq2seq"):
            raise BALoraError(
                f"anchor: generated is for models that write text, and the task is {task}. Give unlabelled rows as anchor."
            )
    elif isinstance(anchors.text, str) and anchors.text.endswith(".safetensors"):
        path = Path(anchors.text).expanduser()
        if not path.is_file():
            raise BALoraError(f"anchor: there is no file {anchors.text}.{suggest_path(path)}")
        _check_kept(path, AnchorRows.load(path, anchors.held_out, 0), task, tokenizer, config)
    elif task == "seq2seq":
        raise BALoraError(
            "anchor: a text has no targets for an encoder-decoder, so it cannot anchor a seq2seq run. Use anchor: generated, or in "
            "Python give rows with input_ids and labels (balora.Anchors(rows=...))."
        )
    else:
        read_anchor_texts(anchors, tokenizer)


def _make(trainer: Any, anchors: Anchors, tokens_per_step: float, processes: int) -> Sequence[Row]:
    tokenizer = _tokenizer_of(trainer)
    if tokenizer is None:
        raise BALoraError(
            "The anchors need the tokenizer: pass processing_class=tokenizer to the trainer, or give them as rows of tokens "
            "(balora.Anchors(rows=...))."
        )
    task, seed = trainer.task, trainer.args.seed
    check_anchors(anchors, task, tokenizer, trainer.model.config)
    if anchors.generate is not None:
        count = _needed(trainer, anchors, tokens_per_step, processes)
        if task == "seq2seq":
            sources = _sources(trainer, count)
            sample: Callable[[], list[Row]] = lambda: _answer(trainer, tokenizer, anchors, sources)  # noqa: E731
            return _shared(trainer, anchors, [count, sources], sample)
        start_tokens(tokenizer)
        return _shared(trainer, anchors, count, lambda: _sample(trainer, tokenizer, anchors, count))
    if isinstance(anchors.text, str) and anchors.text.endswith(".safetensors"):
        return _kept_rows(anchors, seed, trainer.model)
    texts = read_anchor_texts(anchors, tokenizer)
    rendered = anchors.messages is not None
    count = _drawn_from_text(anchors)
    return list(text_rows(texts, tokenizer, anchors.tokens, count, seed, task=task, rendered=rendered))


def _drawn_from_text(anchors: Anchors) -> int:
    """Return the sequences to draw from a text; with a budget also those that steer it and report the drift reached."""
    return anchors.sequences + (0 if anchors.budget is None else 2 * anchors.control)


def _tokenizer_of(trainer: Any) -> Any:
    processing = getattr(trainer, "processing_class", None)
    return getattr(processing, "tokenizer", processing)


def _needed(trainer: Any, anchors: Anchors, tokens_per_step: float, processes: int) -> int:
    """Return the sequences to sample: no more than the run draws and measures."""
    assert anchors.generate is not None
    args = trainer.args
    steps = args.max_steps
    if steps <= 0:
        if not hasattr(trainer.train_dataset, "__len__"):
            return anchors.generate + (0 if anchors.budget is None else 2 * anchors.control)
        rows_of_step = trainer._train_batch_size * args.gradient_accumulation_steps * processes
        steps = math.ceil(args.num_train_epochs * math.ceil(len(trainer.train_dataset) / rows_of_step))
    per_step = rows_per_step(anchors.share, tokens_per_step, float(anchors.tokens), processes)
    # A third more than full-length sequences would need, because sequences may end early.
    drawn = -(-4 * per_step * steps // 3)
    if anchors.budget is not None:
        return max(min(anchors.generate, drawn), 16) + 2 * anchors.control
    return max(min(anchors.generate, round(drawn / (1.0 - anchors.held_out))), 16)


def _mean_tokens(rows: Any, default: float) -> float:
    """Return the mean number of tokens of the training rows, over at most a thousand of them at equal distances."""
    if rows is None or isinstance(rows, IterableDataset) or not hasattr(rows, "__len__") or not len(rows):
        return default
    step = max(len(rows) // _ROW_SAMPLE, 1)
    lengths = []
    for number in range(0, len(rows), step):
        row = rows[number]
        ids = row.get("input_ids") if hasattr(row, "get") else None
        if ids is None:
            return default
        lengths.append(len(ids))
    return sum(lengths) / len(lengths)


def _pad_token(trainer: Any) -> int:
    tokenizer = getattr(trainer, "processing_class", None)
    for source in (tokenizer, trainer.model.config):
        token = getattr(source, "pad_token_id", None)
        if isinstance(token, int) and token >= 0:
            return token
    return 0


def _identity(anchors: Anchors, seed: int) -> str:
    """Return a digest of the settings that decide the rows."""
    decisive = {name: value for name, value in anchors.to_dict().items() if name not in _WITHOUT_EFFECT_ON_ROWS}
    if anchors.budget is not None:
        decisive["control"] = anchors.control
    return hashlib.sha256(json.dumps([decisive, seed], sort_keys=True).encode()).hexdigest()[:16]
