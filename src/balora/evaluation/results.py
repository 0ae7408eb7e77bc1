"""Files of an evaluation: a journal that grows sample by sample, and a result file per task.

``TASK.samples.jsonl`` is the journal. Its first line is the identity: model, data, prompts and generation settings. Each
further line adds fields to one sample. A second call reads the journal and computes only what is missing.
``TASK.json`` is the result: scores, provenance, and every scored sample.

If several processes answer, the first has the journal, and each other one a part (``TASK.samples.part-RANK.jsonl``). The first
process adds the parts to the journal when all have answered, and those of an interrupted evaluation when it opens the journal.
"""

import glob
import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from balora.checkpoints.provenance import provenance
from balora.errors import BALoraError
from balora.files import open_to_append, write_text
from balora.turns import division, from_first, together

Record = dict[str, Any]


class Journal:
    """Samples of one task, written to disk one by one.

    All files are named after the task. A journal on disk that is damaged or has another identity raises BALoraError.

    Args:
        folder: Directory of the files.
        task: Name of the task.
        identity: Model, data, prompts and generation settings.
        part: Rank of a process that writes a part; 0 for the journal itself.
    """

    def __init__(self, folder: Path, task: str, identity: Mapping[str, Any], part: int = 0) -> None:
        self.path = folder / (f"{task}.samples.part-{part}.jsonl" if part else f"{task}.samples.jsonl")
        self.result_path = folder / f"{task}.json"
        self.task = task
        self.identity = json.loads(json.dumps(identity))
        self.records: dict[str, Record] = {}
        self._own: list[tuple[str, Record]] = []
        if self.path.is_file():
            self._read()

    @classmethod
    def divided(cls, folder: Path, task: str, identity: Callable[[], Mapping[str, Any]]) -> "Journal":
        """Open the journal in the first process, and a part in each other one, with the samples of the journal.

        ``identity`` returns the identity; only the first process calls it. Every process must call this method.
        """

        def opened() -> Journal:
            journal = cls(folder, task, identity())
            journal._merge_parts()
            return journal

        rank, _ = division()
        first = from_first(opened)
        if rank == 0:
            return first
        folder.mkdir(parents=True, exist_ok=True)
        own = cls(folder, task, first.identity, part=rank)
        own.records = first.records
        return own

    def add(self, sample: str, **fields: Any) -> None:
        """Add fields to a sample, and append them to the file."""
        self.records.setdefault(sample, {}).update(fields)
        self._own.append((sample, fields))
        self._append({"id": sample, **fields})

    def exchange(self) -> None:
        """Give every process the samples that the others have added; the first writes them into the journal.

        Every process must call it. With one process it does nothing.
        """
        rank, _ = division()
        parts = together(self._own)
        for other, part in enumerate(parts):
            for sample, fields in part if other != rank else ():
                if rank == 0:
                    self.add(sample, **fields)
                else:
                    self.records.setdefault(sample, {}).update(fields)
        self._own.clear()
        from_first(lambda: None)  # the journal has the part's samples now
        if rank > 0:
            self.path.unlink(missing_ok=True)

    def _merge_parts(self) -> None:
        """Add the parts that an interrupted evaluation has left."""
        for path in sorted(self.path.parent.glob(f"{glob.escape(self.task)}.samples.part-*.jsonl")):
            number = path.name.removesuffix(".jsonl").rpartition("-")[2]
            part = Journal(self.path.parent, self.task, self.identity, int(number)) if number.isdecimal() else None
            for sample, fields in part.records.items() if part is not None else ():
                self.add(sample, **fields)
            path.unlink(missing_ok=True)
        self._own.clear()

    def missing(self, samples: Iterable[str], field: str) -> list[str]:
        """Return the samples that lack a field, in order."""
        return [sample for sample in samples if field not in self.records.get(sample, {})]

    def finish(self, samples: Iterable[str | Record], scores: Record, details: Record) -> Record:
        """Write the result file, and return its content.

        Args:
            samples: Scored samples: names of the journal, or complete records.
            scores: Scores by name; ``main`` is the name of the main score.
            details: Further entries, such as the data's source.
        """
        result = {
            "task": self.task,
            "scores": scores,
            "standard_errors": {},
            "identity": self.identity,
            **details,
            "provenance": provenance(),
            "samples": [{"id": name, **self.records[name]} if isinstance(name, str) else name for name in samples],
        }
        result["standard_errors"] = standard_errors(result)
        write_text(self.result_path, _json_text(result, indent=1))
        return result

    def _append(self, line: Mapping[str, Any]) -> None:
        is_new = not self.path.is_file()
        with open_to_append(self.path) as file:
            if is_new:
                file.write(_json_text({"identity": self.identity}))
            file.write(_json_text(line))

    def _read(self) -> None:
        content = self.path.read_bytes()
        complete = content[: content.rfind(b"\n") + 1]
        if len(complete) < len(content):
            # The process was killed while it wrote the last line. Drop the line; its sample is computed again.
            with self.path.open("r+b") as file:
                file.truncate(len(complete))
        # Not splitlines: an answer may contain U+2028, U+2029 or U+0085, which JSON does not escape.
        lines = complete.decode("utf-8").split("\n")[:-1]
        if not lines:
            self.path.unlink()
            return
        try:
            head, *rest = [json.loads(line) for line in lines]
            found = head["identity"]
            for line in rest:
                self.records.setdefault(line.pop("id"), {}).update(line)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BALoraError(f"{self.path} is damaged ({error}). Delete it to evaluate this task again.") from error
        changed = [key for key in {**found, **self.identity} if found.get(key) != self.identity.get(key)]
        if changed:
            raise BALoraError(
                f"{self.path} has samples that were made with another {', '.join(changed)}. Choose another output, or delete "
                "the file to evaluate this task again."
            )


def standard_errors(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the standard error of each score that is a function of the items, for other items like these.

    Example:
        >>> samples = [{"id": str(n), "correct": n < 50, "extracted": "1"} for n in range(100)]
        >>> errors = standard_errors({"scores": {"main": "accuracy", "accuracy": 0.5}, "samples": samples})
        >>> round(errors["accuracy"], 2)
        0.05
    """
    from balora.evaluation.significance.intervals import estimate  # imports scipy.stats, which a journal does not need
    from balora.evaluation.significance.items import items_of_result

    items = items_of_result(result)
    found = {}
    for name in items.scores if items else ():
        value = result["scores"].get(name)
        if items is not None and isinstance(value, int | float) and math.isfinite(value):
            error = estimate([float(value)], [items], (), name)
            if error is not None and error.error > 0:
                found[name] = error.error
    return found


def count_answers(records: Iterable[Record]) -> dict[str, int]:
    """Count the answers that are empty, and those that the token limit ended. Reference answers have no limit.

    Example:
        >>> count_answers([{"output": " \\n", "ended": True}, {"output": "Well, so", "ended": False}, {"output": "4"}])
        {'empty_answers': 1, 'answers_at_token_limit': 1}
    """
    records = list(records)
    return {
        "empty_answers": sum(not str(record["output"]).strip() for record in records),
        "answers_at_token_limit": sum(record.get("ended") is False for record in records),
    }


def _json_text(value: Any, indent: int | None = None) -> str:
    """Return JSON that UTF-8 can encode: a lone surrogate, which a program may contain, becomes its JSON escape."""
    text = json.dumps(json_safe(value), indent=indent, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode("utf-8") + "\n"


def json_safe(value: Any) -> Any:
    """Replace NaN and infinities, which JSON does not have, by None.

    Example:
        >>> json_safe({"score": float("nan"), "rows": (1, 2)})
        {'score': None, 'rows': [1, 2]}
    """
    if isinstance(value, Mapping):
        return {str(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
