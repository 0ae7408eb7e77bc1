"""Plan of a comparison: variants, varied keys, seeds, and the config of each run."""

from __future__ import annotations

from pathlib import Path

import pytest

from balora.errors import BALoraError
from balora.experiments.compare import Variant, lay_out, parse_axes, parse_seeds, plan, read_variants
from balora.experiments.compare.plan import configure

CONFIG = {
    "model": "m",
    "task": "classification",
    "data": {"train": "d.tsv", "text": "t", "label": "l"},
    "method": {"name": "balora", "rank": 4, "svd": "randomized", "svd_iterations": 2},
    "regularization": {"teacher_head": "probe"},
    "output": "runs/a",
}


def cells(names: str, seeds=(1,), axes=None, overrides=()):
    general, variants = read_variants(names.split(","), overrides)
    assert not general
    return plan(CONFIG, variants, seeds, axes or {}, Path("out"))


def test_every_variant_runs_with_every_combination_and_seed():
    result = cells("lora,pissa", seeds=(1, 2), axes={"method.rank": [4, 8]})
    assert len(result) == 8
    assert len({cell.run_directory for cell in result}) == 8
    assert {(c.variant.name, c.config.method.rank, c.config.seed) for c in result} == {
        (name, rank, seed) for name in ("lora", "pissa") for rank in (4, 8) for seed in (1, 2)
    }
    assert [cell.seed for cell in result] == [1] * 4 + [2] * 4, "seed by seed, so that a table is there early"


def test_a_plain_method_ignores_the_regularizers_of_the_config():
    off, plus, ours = (cell.config.regularization for cell in cells("lora,lora+reg,balora"))
    assert not off.active
    assert plus == ours
    assert plus.active
    assert plus.teacher_head == "probe", "a regularized variant uses the config's values"


def test_the_suffix_reg_overrides_regularization_off():
    values = configure({**CONFIG, "regularization": "off"}, Variant.parse("lora+reg"))
    assert values["regularization"] is True


def test_options_of_another_method_are_dropped_and_a_misspelt_option_is_refused():
    lora, pissa = cells("lora,pissa")
    assert lora.config.method.options == {}
    assert pissa.config.method.options == {"svd": "randomized", "svd_iterations": 2}
    with pytest.raises(BALoraError, match="rnak"):
        plan({**CONFIG, "method": {"rnak": 4}}, [Variant.parse("lora")], [1], {}, Path("out"))


def test_a_variant_runs_once_if_it_ignores_the_varied_key():
    result = cells("pissa,balora,full", axes={"regularization.consistency": [0.1, 0.2], "method.rank": [2, 4]})
    found = {name: [c.axes for c in result if c.variant.name == name] for name in ("pissa", "balora", "full")}
    assert found["full"] == [{}]
    assert found["pissa"] == [{"method.rank": 2}, {"method.rank": 4}]
    assert len(found["balora"]) == 4
    assert [c.config.regularization.consistency for c in result if c.variant.name == "balora"] == [0.1, 0.1, 0.2, 0.2]


def test_an_override_can_apply_to_one_variant():
    general, variants = read_variants(
        ["lora", "lora+reg"], ["model=C:/x", "lora+reg:training.learning_rate=0.5", "lora:method.rank=2"]
    )
    assert general == ["model=C:/x"], "a colon after the equals sign belongs to the value"
    lora, plus = plan(CONFIG, variants, [1], {}, Path("out"))
    assert (lora.config.method.rank, plus.config.method.rank) == (2, 4)
    assert plus.config.training["learning_rate"] == 0.5
    assert "learning_rate" not in lora.config.training


def test_run_directories_differ_if_values_differ():
    result = cells("lora", axes={"data.max_length": [64, 128], "data.labels": [["a", "b"], ["a", "c"]]})
    assert len({cell.run_directory for cell in result}) == 4


@pytest.mark.parametrize(
    ("call", "fragments"),
    [
        (lambda: read_variants(["lorra"], []), ["lorra", "'lora'"]),
        (lambda: read_variants(["lora"], ["pisa:method.rank=2"]), ["pisa", "not among the methods"]),
        (lambda: parse_seeds(["1", "x"]), ["--seeds", "'x'"]),
        (lambda: parse_axes(["method.rank"]), ["--vary", "method.rank"]),
        (lambda: parse_axes(["method.rank="]), ["--vary", "dotted.key=value"]),
        (lambda: parse_axes(["seed=1,2"]), ["--seeds"]),
        (lambda: cells("lora,lora"), ["--methods", "lora", "more than once"]),
        (lambda: cells("lora", seeds=(3, 3)), ["--seeds", "3", "more than once"]),
        (lambda: cells("lora", axes={"method.rnak": [1]}), ["lora", "rnak", "'rank'"]),
    ],
)
def test_invalid_arguments_are_refused(call, fragments: list[str]):
    with pytest.raises(BALoraError) as error:
        call()
    for fragment in fragments:
        assert fragment in str(error.value)


def test_the_default_directory_is_next_to_the_output_and_a_run_directory_is_refused(tmp_path: Path):
    variants = [Variant.parse("lora")]
    assert lay_out(CONFIG, variants, [1])[1] == Path("runs/a-compare")
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(BALoraError, match="single run"):
        lay_out(CONFIG, variants, [1], output=tmp_path)


def test_values_that_differ_in_one_character_have_different_run_directories():
    result = cells("lora", axes={"data.train": ["a_b.jsonl", "a-b.jsonl", "a b.jsonl"]})
    assert [cell.config.data.train for cell in result] == ["a_b.jsonl", "a-b.jsonl", "a b.jsonl"]
    assert len({cell.name for cell in result}) == 3


def test_a_varied_fraction_of_1_stays_a_float():
    result = cells("lora", axes=parse_axes(["data.subsample=0.5,1.0"]))
    assert [repr(cell.config.data.subsample) for cell in result] == ["0.5", "1.0"]
