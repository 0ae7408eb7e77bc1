"""Anchors on a real model, on a CPU: SmolLM2-135M-Instruct learns GSM8K plain, anchored and with a larger printed consistency.

`python scripts/real_anchor_study.py --model SmolLM2-135M-Instruct --data data` goes on where it stopped; a run takes about ten
minutes of one core. ``--data`` is a folder with ``gsm8k``, ``instruct``, ``mbpp`` and ``glue/SST-2``. It writes its rows and
docs/results/anchors-real-model.md; `--page` writes the page from the rows alone.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from study_runs import append_run, read_rows

ROOT = Path(__file__).resolve().parents[1]
ROWS = ROOT / "docs" / "results" / "anchors" / "real-model.jsonl"
PAGE = ROOT / "docs" / "results" / "anchors-real-model.md"
SEEDS = (1, 2, 3, 4, 5)
STEPS, BATCH, RANK, RATE, LONGEST = 100, 4, 16, 1e-3, 450
HELD: dict[str, Any] = {"share": 0.25, "held_out": 0.125}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "anchored": {"anchor": 2.0},
    "anchored, weight 10": {"anchor": 10.0},
    "consistency 0.2": {"consistency": 0.2},
}
"""In the order of the queue: the first three settings seed by seed, then the other one."""
COUNTS = {"task": 100, "drift": 64, "code": 64, "sentiment": 400}
MEASURES = {
    "task": "GSM8K, nats a token",
    "drift": "drift on alpaca",
    "code": "MBPP, nats a token",
    "sentiment": "SST-2",
}


def main() -> None:
    """Run what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--one", help="a run as JSON; prints its row")
    parser.add_argument("--page", action="store_true", help="write the page only")
    given = parser.parse_args()
    if not given.page and not (given.model and given.data):
        parser.error("Give --model and --data, or --page.")
    if given.one:
        print(json.dumps(run(given.model, given.data, **json.loads(given.one))))
        return
    done = {(r["setting"], r["seed"]) for r in rows()}
    first, others = list(SETTINGS)[:3], list(SETTINGS)[3:]
    todo = [("pre-trained", 0), *((s, seed) for seed in SEEDS for s in first), *((s, n) for s in others for n in SEEDS)]
    for setting, seed in [] if given.page else [one for one in todo if one not in done]:
        _in_a_process(given, {"setting": setting, "seed": seed})
        write_page()
    write_page()


def _in_a_process(given: argparse.Namespace, what: dict[str, Any]) -> None:
    append_run(ROWS, __file__, "--model", given.model, "--data", given.data, "--one", json.dumps(what))


def rows() -> list[dict[str, Any]]:
    """Return the finished runs."""
    return read_rows(ROWS)


def run(model_path: Path, data: Path, setting: str, seed: int) -> dict[str, Any]:
    """Train once and measure; ``pre-trained`` measures alone."""
    import time

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

    import balora
    from balora.checkpoints.provenance import provenance
    from balora.data.collate import make_collator

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    texts = read_texts(data)
    base = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).eval()
    begun, wanted = time.perf_counter(), SETTINGS.get(setting)
    if wanted is None:
        return {"setting": setting, "seed": seed, **measure(base, base, tokenizer, texts), **provenance()}
    options: dict[str, Any] = {}
    if "anchor" in wanted:
        options["anchors"] = balora.Anchors(rows=_anchor_rows(base, tokenizer), weight=wanted["anchor"], **HELD)
    model = balora.adapt(
        AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32), "lora", rank=RANK, seed=seed
    )
    off = balora.RegularizationConfig.off()
    held = balora.RegularizationConfig.for_generation(
        consistency=wanted.get("consistency", 0.0), diversity=0, spectral=0
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = balora.BALoraTrainer(
            model=model,
            args=TrainingArguments(
                folder, max_steps=STEPS, learning_rate=RATE, lr_scheduler_type="cosine", warmup_steps=5, seed=seed,
                per_device_train_batch_size=BATCH, save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True,
                logging_steps=25,
            ),
            train_dataset=[tokenized(tokenizer, *pair) for pair in texts["train"]],
            data_collator=make_collator("generation", tokenizer, model),
            regularization=held if "consistency" in wanted else off,
            processing_class=tokenizer, **options,
        )  # fmt: skip
        metrics = trainer.train().metrics
    own = {name: metrics[name] for name in ("anchor_drift", "train_loss", "train_runtime") if name in metrics}
    found = measure(model.eval(), base, tokenizer, texts)
    return {"setting": setting, "seed": seed, **found, **own, "seconds": time.perf_counter() - begun, **provenance()}


Pairs = list[tuple[str, str]]


def read_texts(data: Path) -> dict[str, Pairs]:
    """Return questions and answers: of the task to train and to test, of the drift, of code, and of sentiment."""

    def lines(*path: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in data.joinpath(*path).read_text(encoding="utf-8").splitlines()]

    alpaca = json.loads((data / "instruct" / "llamafactory_alpaca_en_demo.json").read_text(encoding="utf-8"))
    found = {
        "train": [(row["question"], row["answer"]) for row in lines("gsm8k", "train.jsonl")],
        "task": [(row["question"], row["answer"]) for row in lines("gsm8k", "test.jsonl")],
        "drift": [
            ("\n".join(filter(None, (r["instruction"], r["input"]))), r["output"]) for r in alpaca if r["output"]
        ],
        "code": [(row["text"], row["code"]) for row in lines("mbpp", "mbpp.jsonl") if 11 <= row["task_id"] <= 510],
    }
    short = {name: [pair for pair in pairs if sum(map(len, pair)) <= LONGEST] for name, pairs in found.items()}
    with (data / "glue" / "SST-2" / "dev.tsv").open(encoding="utf-8") as file:
        reviews = [
            (r["sentence"], ("negative", "positive")[int(r["label"])]) for r in csv.DictReader(file, delimiter="\t")
        ]
    chosen = {"train": short["train"], "sentiment": reviews[: COUNTS["sentiment"]]}
    return chosen | {name: short[name][: COUNTS[name]] for name in ("task", "drift", "code")}


def tokenized(tokenizer: Any, prompt: str, answer: str) -> dict[str, list[int]]:
    """Return a row of the chat template whose labels are the answer's tokens."""
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    before = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=True)["input_ids"]
    whole = tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"]
    assert whole[: len(before)] == before
    return {"input_ids": whole, "labels": [-100] * len(before) + whole[len(before) :]}


def _anchor_rows(base: Any, tokenizer: Any) -> list[dict[str, list[int]]]:
    """Return text that the model wrote, the same for all runs; the first run writes it."""
    from balora.anchoring.sampling import sample_sequences

    path = Path(tempfile.gettempdir()) / "balora-real-anchor-study.json"
    if not path.is_file():
        path.write_text(json.dumps(sample_sequences(base, tokenizer, 128, 96, seed=0, batch_size=32)), encoding="utf-8")
    found: list[dict[str, list[int]]] = json.loads(path.read_text(encoding="utf-8"))
    return found


def measure(model: Any, base: Any, tokenizer: Any, texts: dict[str, Pairs]) -> dict[str, Any]:
    """Return sums and token numbers of each document for the losses and the drift, and right or wrong for the sentiment."""
    import torch

    def loss(logits_MV: Any, pretrained_MV: Any, labels_M: Any) -> Any:
        return torch.nn.functional.cross_entropy(logits_MV, labels_M, reduction="none")

    def divergence(logits_MV: Any, pretrained_MV: Any, labels_M: Any) -> Any:
        own, before = logits_MV.log_softmax(-1), pretrained_MV.log_softmax(-1)
        return (before.exp() * (before - own)).sum(-1)

    found: dict[str, Any] = {}
    with torch.inference_mode():
        for name, value, needs in (("task", loss, False), ("code", loss, False), ("drift", divergence, True)):
            documents = [tokenized(tokenizer, *pair) for pair in texts[name]]
            sums = [_sum(row, value, model, base if needs else None) for row in documents]
            found[name] = {"sums": sums, "tokens": [sum(t != -100 for t in row["labels"]) for row in documents]}
        found["sentiment"] = [_answers_right(model, tokenizer, *pair) for pair in texts["sentiment"]]
    return found


def _sum(row: dict[str, list[int]], value: Callable[..., Any], model: Any, base: Any) -> float:
    import torch

    ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"][1:])
    keep_M = (labels != -100).nonzero()[:, 0]
    logits_MV = model(input_ids=ids, logits_to_keep=keep_M).logits[0]
    pretrained_MV = base(input_ids=ids, logits_to_keep=keep_M).logits[0] if base is not None else None
    return float(value(logits_MV, pretrained_MV, labels[keep_M]).double().sum())


def _answers_right(model: Any, tokenizer: Any, sentence: str, answer: str) -> int:
    """Return 1 if the model finds the right word likelier than the other one after the review."""
    import torch

    ids = tokenizer(f"Review: {sentence}\nSentiment:")["input_ids"]
    logits_V = model(input_ids=torch.tensor([ids]), logits_to_keep=1).logits[0, -1]
    first = {word: tokenizer(f" {word}", add_special_tokens=False)["input_ids"][0] for word in ("positive", "negative")}
    return int(max(first, key=lambda word: float(logits_V[first[word]])) == answer)


def items(row: dict[str, Any], name: str) -> Any:
    """Return the items of one measure of a row."""
    from balora.evaluation.significance.items import Items

    if name == "sentiment":
        return Items.of_values([str(n) for n in range(len(row[name]))], {"loss": row[name]})
    names = [str(n) for n in range(len(row[name]["sums"]))]
    return Items.of_losses(names, row[name]["sums"], row[name]["tokens"])


def write_page() -> None:
    """Write the page from the rows."""
    done = rows()
    by = {setting: [r for r in done if r["setting"] == setting] for setting in ("pre-trained", *SETTINGS)}
    scores = [_scores(setting, group) for setting, group in by.items() if group]
    others = [setting for setting in SETTINGS if setting != "plain" and len(by[setting]) > 1]
    levels = _levels(by, others)
    differences = [_difference(setting, by, levels) for setting in others]
    missing = [
        f"{setting} ({len(by[setting])} of {len(SEEDS)} seeds)" for setting in SETTINGS if len(by[setting]) < len(SEEDS)
    ]
    state = f"\n**Not finished**: {', '.join(missing)}. The command goes on where it stopped.\n" if missing else ""
    compared = _COMPARED.format(differences="\n".join(differences), runs=len(others) * len(MEASURES)) if others else (
        "Nothing is compared yet: that takes two seeds of a setting and of plain."
    )  # fmt: skip
    PAGE.write_text(_PAGE.format(scores="\n".join(scores), state=state, compared=compared), encoding="utf-8")


def _scores(setting: str, group: Sequence[dict[str, Any]]) -> str:
    cells = []
    for name in MEASURES:
        values = [items(row, name).value("loss") for row in group]
        spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
        cells.append(f"{statistics.fmean(values):.4f}{spread}")
    seconds = [row["train_runtime"] / STEPS for row in group if "train_runtime" in row]
    cells.append(f"{statistics.median(seconds):.1f}" if seconds else "")
    return f"| {setting} | {len(group) if setting in SETTINGS else ''} | {' | '.join(cells)} |"


def _paired(setting: str, by: dict[str, list[dict[str, Any]]], name: str) -> Any:
    from balora.evaluation.significance.intervals import estimate

    plain = {row["seed"]: items(row, name) for row in by["plain"]}
    own = {row["seed"]: items(row, name) for row in by[setting]}
    seeds = sorted(plain.keys() & own.keys())
    values = [own[s].value("loss") - plain[s].value("loss") for s in seeds]
    return estimate(values, [own[s] for s in seeds], [plain[s] for s in seeds], "loss")


def _levels(by: dict[str, list[dict[str, Any]]], others: Sequence[str]) -> dict[tuple[str, str], float]:
    """Return the significance level of each comparison of the page, corrected by Holm."""
    from balora.evaluation.significance.intervals import holm_levels

    keys = [(setting, name) for setting in others for name in MEASURES]
    found = [_paired(*key[:1], by, key[1]) for key in keys]
    return dict(zip(keys, holm_levels([1.0 if one is None else one.p for one in found]), strict=True))


def _difference(setting: str, by: dict[str, list[dict[str, Any]]], levels: dict[tuple[str, str], float]) -> str:
    cells = []
    for name in MEASURES:
        found = _paired(setting, by, name)
        if found is None:
            cells.append("not told")
            continue
        low, high = found.interval(1 - levels[setting, name])
        cells.append(f"{found.mean:+.4f} ({low:+.4f} to {high:+.4f})")
    left = [statistics.fmean(items(row, "drift").value("loss") for row in by[which]) for which in (setting, "plain")]
    return f"| {setting} | {' | '.join(cells)} | {100 * left[0] / left[1]:.0f} % |"


_COMPARED = """\
| setting | GSM8K, difference | drift, difference | MBPP, difference | SST-2, difference | drift that is left |
|---|---|---|---|---|---|
{differences}

With 95 % intervals over seeds and documents, corrected for the {runs} comparisons of the table by Holm's method. They cover new
seeds and new documents of these kinds, for this model and this task alone."""
_PAGE = f"""\
# Anchors on a real model

`python scripts/real_anchor_study.py` writes this page. SmolLM2-135M-Instruct in float32 learns GSM8K: LoRA of rank {RANK},
{STEPS} steps of {BATCH} rows, learning rate {RATE:g}, cosine schedule. Rows of more than {LONGEST} characters are left out,
so that a run takes minutes on a CPU. The anchors are 128 sequences of 96 tokens at most that the pre-trained model wrote
itself, a quarter of the task's tokens in each step, weight 2 (the default) unless said. *Consistency 0.2* is the paper's
term at a larger weight than the printed one, on the task's own tokens, instead of anchors.

- GSM8K: mean loss over the answers' tokens of {COUNTS["task"]} test rows. Lower is better.
- Drift: KL(pre-trained ‖ tuned) in nats per token on {COUNTS["drift"]} alpaca answers, which are neither the task nor the anchors.
- MBPP: mean loss over the tokens of {COUNTS["code"]} reference programs, a skill that is not trained. Lower is better.
- SST-2: share of {COUNTS["sentiment"]} film reviews whose sentiment the model names rightly without an example. Higher is better.

| setting | seeds | GSM8K | drift | MBPP | SST-2 | seconds a step |
|---|---|---|---|---|---|---|
{{scores}}

Mean ± standard deviation over the seeds. The seconds are of one core of a busy machine.
{{state}}
## Against plain

{{compared}}
"""


if __name__ == "__main__":
    main()
