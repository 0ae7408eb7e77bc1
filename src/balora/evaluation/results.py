"""What an evaluation leaves behind: a journal that grows sample by sample, and a result that is written whole.

``TASK.samples.jsonl`` is the journal. Its first line says whose samples these are (model, data, prompts, generation);
every further line adds facts to one sample, so that a second call continues where the first one stopped and does nothing
twice. ``TASK.json`` is the result: scores, provenance, and every sample that was scored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from balora.checkpoints.provenance import provenance
from balora.errors import BALoraError
from balora.files import write_text

Record = dict[str, Any]


class Journal:
    """The samples of one task, on disk as they come.

    Args:
        folder: Where the results lie.
        task: The name that the files carry.
        identity: What makes the samples what they are. A journal with another identity is refused, not mixed with.

    Raises:
        BALoraError: The journal belongs to something else, or is damaged.
    """

    def __init__(self, folder: Path, task: str, identity: Mapping[str, Any]) -> None:
        self.path = folder / f"{task}.samples.jsonl"
        self.result_path = folder / f"{task}.json"
        self.task = task
        self.identity = json.loads(json.dumps(identity))
        self.records: dict[str, Record] = {}
        if self.path.is_file():
            self._read()
        if not self.path.is_file():
            self._append({"identity": self.identity})

    def add(self, sample: str, **facts: Any) -> None:
        """Write facts about a sample, beside those it has."""
        self.records.setdefault(sample, {}).update(facts)
        self._append({"id": sample, **facts})

    def missing(self, samples: Iterable[str], fact: str) -> list[str]:
        """Those samples that lack a fact, in order."""
        return [sample for sample in samples if fact not in self.records.get(sample, {})]

    def finish(
        self,
        samples: Iterable[str],
        scores: Mapping[str, Any],
        about: Mapping[str, Any],
        records: Iterable[Record] | None = None,
    ) -> Record:
        """Write the result.

        Args:
            samples: Names of those that were scored.
            scores: With ``main``, the name of the one that stands for all.
            about: What else is worth knowing.
            records: The samples, where they are not what the journal has.

        Returns:
            What was written.
        """
        result = {
            "task": self.task,
            "scores": scores,
            "identity": self.identity,
            **about,
            "provenance": provenance(),
            "samples": list(records or ({"id": sample, **self.records[sample]} for sample in samples)),
        }
        write_text(self.result_path, json.dumps(plain(result), indent=1, ensure_ascii=False) + "\n")
        return result

    def _append(self, line: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(plain(line), ensure_ascii=False) + "\n")

    def _read(self) -> None:
        text = self.path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if len(whole) < len(text):
            # The process was killed within a line; what it was about to say is not known, so it is done again.
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        # Not splitlines: an answer may hold U+2028, U+2029 or U+0085, which JSON leaves as they are.
        lines = whole.decode("utf-8").split("\n")[:-1]
        if not lines:
            self.path.unlink()
            return
        try:
            head, *rest = [json.loads(line) for line in lines]
            found = head["identity"]
            for line in rest:
                self.records.setdefault(line.pop("id"), {}).update(line)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BALoraError(f"{self.path} is damaged ({error}). Delete it to evaluate this task anew.") from error
        changed = [key for key in {**found, **self.identity} if found.get(key) != self.identity.get(key)]
        if changed:
            raise BALoraError(
                f"{self.path} holds samples made with another {', '.join(changed)}. Choose another output, or delete it to "
                "evaluate this task anew."
            )


def plain(value: Any) -> Any:
    """A value as JSON can hold it: NaN and infinities, which JSON does not have, become None.

    Example:
        >>> plain({"score": float("nan"), "rows": (1, 2)})
        {'score': None, 'rows': [1, 2]}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


__all__ = ["Journal", "Record", "plain"]
