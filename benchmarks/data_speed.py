"""Measure the data path beside plain ``datasets.map`` tokenization: seconds and peak memory by form and number of rows.

Every measurement is a new process with an empty cache: ``plain`` (what a short script does: `datasets.load_dataset`, then
``map`` with the tokenizer in batches, without labels), ``labelled`` (the same, and the labels of the response as well, which
needs the prompt's tokens), ``balora`` (`load_examples` and `tokenize_examples`), and ``again`` (``balora`` a second time, with
its cache). The rows repeat real ones, each with a number, so that no two are equal.

    python benchmarks/data_speed.py --tokenizer SmolLM2-135M-Instruct --rows 200000 --rounds 3
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from result_rows import Rows, ratios, summary

FORMS = ("pair", "chat", "classification")
PATHS = ("plain", "labelled", "balora", "again")
SEPARATOR = "\n"
SECTIONS = {
    "pair": {"prompt": "question", "response": "answer"},
    "chat": {"messages": "messages"},
    "classification": {"text": "sentence", "label": "label"},
}


def write_rows(form: str, count: int, shared: Path, path: Path) -> None:
    """Write rows of a form as JSON lines: GSM8K, the Alpaca demonstration as chats of one or two turns, and SST-2."""
    with path.open("w", encoding="utf-8") as file:
        for number, row in zip(range(count), _forever(form, shared), strict=False):
            file.write(json.dumps(_numbered(form, row, number)) + "\n")


def _forever(form: str, shared: Path) -> Iterator[dict[str, Any]]:
    if form == "pair":
        rows = [json.loads(line) for line in (shared / "gsm8k/train.jsonl").read_text("utf-8").splitlines()]
    elif form == "chat":
        told = json.loads((shared / "instruct/llamafactory_alpaca_en_demo.json").read_text("utf-8"))
        turns = [
            [
                {"role": "user", "content": f"{row['instruction']} {row['input']}".strip()},
                {"role": "assistant", "content": row["output"]},
            ]
            for row in told
        ]
        rows = [{"messages": one + (turns[i - 1] if i % 2 else [])} for i, one in enumerate(turns)]
    else:
        with (shared / "glue/SST-2/train.tsv").open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    while True:
        yield from rows


def _numbered(form: str, row: dict[str, Any], number: int) -> dict[str, Any]:
    """Return a row with its number in its first text."""
    if form == "chat":
        first, *others = row["messages"]
        return {"messages": [{**first, "content": f"{number}. {first['content']}"}, *others]}
    column = SECTIONS[form]["prompt" if form == "pair" else "text"]
    return {**row, column: f"{number}. {row[column]}"}


def run_plain(form: str, path: Path, tokenizer: Any, processes: int | None, *, labelled: bool) -> int:
    """Tokenize as a short script does; return the number of tokens."""
    import datasets

    def encode(rows: dict[str, list[Any]]) -> dict[str, Any]:
        if form == "classification":
            return {"input_ids": tokenizer(rows["sentence"], truncation=True, max_length=512)["input_ids"]}
        if form == "chat":
            texts = tokenizer.apply_chat_template(rows["messages"], tokenize=False)
            return {"input_ids": tokenizer(texts, add_special_tokens=False)["input_ids"]}
        prompts = [prompt + SEPARATOR for prompt in rows["question"]]
        ends = [answer + tokenizer.eos_token for answer in rows["answer"]]
        texts = tokenizer([p + r for p, r in zip(prompts, ends, strict=True)])["input_ids"]
        if not labelled:
            return {"input_ids": texts}
        starts = [len(ids) for ids in tokenizer(prompts)["input_ids"]]
        labels = [[-100] * start + ids[start:] for ids, start in zip(texts, starts, strict=True)]
        return {"input_ids": texts, "labels": labels}

    rows = datasets.load_dataset("json", data_files=str(path), split="train")
    kept = ["label"] if form == "classification" else []
    columns = [name for name in rows.column_names if name not in kept]
    mapped = rows.map(encode, batched=True, remove_columns=columns, num_proc=processes)
    return len(mapped)


def run_balora(form: str, path: Path, tokenizer: Any, processes: int | None) -> int:
    """Tokenize as a run does; return the number of examples."""
    from balora.config.sections import DataConfig
    from balora.data.examples import load_examples
    from balora.data.tokenize import tokenize_examples

    task = "classification" if form == "classification" else "generation"
    data = DataConfig(train=str(path), max_length=100_000, num_proc=processes or 1, **SECTIONS[form])
    examples = load_examples(data, task)
    return len(tokenize_examples(examples, tokenizer, data, task).train)


def measure(form: str, path: Path, way: str, model: str, processes: int | None) -> dict[str, Any]:
    """Run one way in this process: seconds, peak memory in all and of anonymous pages, in MiB above the imports."""
    import datasets
    from transformers import AutoTokenizer

    import balora.data.examples
    import balora.data.tokenize  # noqa: F401 (imports are not measured)

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(model)
    before = _memory()
    peak = _Peak()
    begun, cpu = time.perf_counter(), _cpu_seconds()
    if way in ("balora", "again"):
        count = run_balora(form, path, tokenizer, processes)
    else:
        count = run_plain(form, path, tokenizer, processes, labelled=way == "labelled")
    seconds, cpu = time.perf_counter() - begun, _cpu_seconds() - cpu
    found = peak.stop()
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "rows": count,
        **{name: found[name] - before[name] for name in found},
    }


def _cpu_seconds() -> float:
    """Return the processor time of this process and of those that have ended below it, which other work hardly changes."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class _Peak(threading.Thread):
    """Largest memory of this process, looked at every 50 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._peak, self._end = _memory(), threading.Event()
        self.start()

    def run(self) -> None:
        while not self._end.wait(0.05):
            self._peak = {name: max(value, self._peak[name]) for name, value in _memory().items()}

    def stop(self) -> dict[str, float]:
        self._end.set()
        self.join()
        return self._peak


def _memory() -> dict[str, float]:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    names = {"resident_mib": "VmRSS", "anonymous_mib": "RssAnon"}
    return {name: float(fields[field].split()[0]) / 1024 for name, field in names.items()}


def in_new_process(form: str, path: Path, way: str, model: str, processes: int | None, cache: Path) -> dict[str, Any]:
    """Run `measure` in a new process with the given cache directory."""
    command = [sys.executable, __file__, "--tokenizer", model, "--one", form, str(path), way]
    command += ["--processes", str(processes)] if processes else []
    environment = {**os.environ, "HF_DATASETS_CACHE": str(cache)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"status": done.stderr.strip().splitlines()[-1][:200]}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Measure every form in alternation and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--tokenizer", required=True, help="id or directory of a model whose tokenizer has a chat template"
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[200_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--ways", nargs="+", choices=PATHS, default=list(PATHS))
    parser.add_argument("--processes", type=int, help="worker processes of both sides")
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("BALORA_SHARED", "shared")))
    parser.add_argument("--output", type=Path, help="another directory for the rows")
    parser.add_argument("--one", nargs=3, metavar=("FORM", "FILE", "WAY"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        form, path, way = asked.one
        print(json.dumps(measure(form, Path(path), way, asked.tokenizer, asked.processes)))
        return
    rows = Rows("data_speed", asked.output)
    with tempfile.TemporaryDirectory() as folder:
        for form in asked.forms:
            for count in asked.rows:
                path = Path(folder) / f"{form}.jsonl"
                write_rows(form, count, asked.shared / "data", path)
                found: dict[str, list[dict[str, Any]]] = {way: [] for way in asked.ways}
                for turn in range(asked.rounds):
                    with tempfile.TemporaryDirectory(dir=folder) as cache:
                        for way in asked.ways:
                            one = in_new_process(
                                form,
                                path,
                                way,
                                asked.tokenizer,
                                asked.processes,
                                Path(cache) / ("balora" if way == "again" else way),
                            )
                            found[way].append(one)
                            print(form, count, turn, way, one, flush=True)
                _add(rows, form, count, asked.processes, found)


def _add(rows: Rows, form: str, count: int, processes: int | None, found: dict[str, list[dict[str, Any]]]) -> None:
    failed = {way: one["status"] for way, ones in found.items() for one in ones if "status" in one}
    if failed:
        rows.add(form=form, count=count, processes=processes or 1, status="failed", failed=failed)
        return
    seconds = {way: [one["seconds"] for one in ones] for way, ones in found.items()}
    cpu = {way: [one["cpu_seconds"] for one in ones] for way, ones in found.items()}
    over = {way: ratios(values, cpu["plain"]) for way, values in cpu.items() if "plain" in cpu}
    memory = {
        name: {way: summary([one[name] for one in ones])["median"] for way, ones in found.items()}
        for name in ("resident_mib", "anonymous_mib")
    }
    rows.add(
        form=form,
        count=count,
        processes=processes or 1,
        load=os.getloadavg()[0],
        seconds={way: summary(values) for way, values in seconds.items()},
        cpu_seconds={way: summary(values) for way, values in cpu.items()},
        cpu_over_plain=over,
        **memory,
    )


if __name__ == "__main__":
    main()
