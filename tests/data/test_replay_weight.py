"""`data.also` entries with a weight: their rows are trained on that often, relative to the other rows."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from balora.config.run_config import RunConfig
from balora.data.examples import load_examples
from balora.errors import BALoraError


def rows(path: Path, name: str, count: int) -> str:
    path.write_text("".join(json.dumps({"q": f"{name}{i}", "a": str(i)}) + "\n" for i in range(count)))
    return str(path)


def config(tmp_path: Path, weight, seed: int = 1, count: int = 8):
    also = [{"train": rows(tmp_path / "b.jsonl", "b", count), **({} if weight is None else {"weight": weight})}]
    data = {"train": rows(tmp_path / "a.jsonl", "a", 4), "prompt": "q", "response": "a", "also": also}
    values = {"model": "m", "task": "generation", "output": "o", "data": data, "seed": seed}
    return RunConfig.from_dict(values)


def counts(tmp_path: Path, weight, seed: int = 1) -> Counter:
    run = config(tmp_path, weight, seed)
    return Counter(load_examples(run.data, "generation", seed).train["prompt"])


@pytest.mark.parametrize(
    ("weight", "expected"), [(None, {1: 8}), (1, {1: 8}), (2, {2: 8}), (0.25, {1: 2}), (2.5, {2: 4, 3: 4})]
)
def test_rows_are_there_as_often_as_the_weight_says(tmp_path, weight, expected):
    found = counts(tmp_path, weight)
    assert all(found[f"a{i}"] == 1 for i in range(4))
    assert Counter(count for name, count in found.items() if name.startswith("b")) == expected


def test_the_fraction_is_random_and_the_same_for_a_seed(tmp_path):
    drawn = [frozenset(counts(tmp_path, 0.5, seed)) for seed in (1, 1, 2, 3, 4)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1


def test_the_weight_is_in_the_name_of_the_source_and_in_the_digest(tmp_path):
    one, two = (load_examples(config(tmp_path, weight).data, "generation", 1) for weight in (1, 2))
    assert "2 × " in two.train_source and "×" not in one.train_source
    assert one.digest != two.digest
    written = RunConfig.from_dict(config(tmp_path, 2.5).to_dict())
    assert written.data.also[0].weight == 2.5


@pytest.mark.parametrize("weight", [0, -1, "much", True, 2000])
def test_other_weights_are_refused(tmp_path, weight):
    with pytest.raises(BALoraError, match=r"data.also.0.weight"):
        config(tmp_path, weight)


def test_a_weight_that_takes_no_row_is_refused(tmp_path):
    with pytest.raises(BALoraError, match="takes none of the 8 rows"):
        load_examples(config(tmp_path, 0.01).data, "generation", 1)


def test_the_section_itself_has_no_weight(tmp_path):
    with pytest.raises(BALoraError, match=r"data.weight"):
        RunConfig.from_dict({
            "model": "m", "task": "generation", "output": "o",
            "data": {"train": "a.jsonl", "prompt": "q", "response": "a", "weight": 2},
        })  # fmt: skip
