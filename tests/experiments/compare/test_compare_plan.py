"""What a comparison runs: variants, axes, seeds, and what each cell's config becomes."""

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


def test_every_variant_meets_every_point_and_seed():
    made = cells("lora,pissa", seeds=(1, 2), axes={"method.rank": [4, 8]})
    assert len(made) == 8
    assert len({cell.run_directory for cell in made}) == 8
    assert {(c.variant.name, c.config.method.rank, c.config.seed) for c in made} == {
        (name, rank, seed) for name in ("lora", "pissa") for rank in (4, 8) for seed in (1, 2)
    }
    assert [cell.seed for cell in made] == [1] * 4 + [2] * 4, "seed by seed, so that a table is there early"


def test_a_method_alone_is_not_regularized_by_the_config():
    off, plus, ours = (cell.config.regularization for cell in cells("lora,lora+reg,balora"))
    assert not off.active
    assert plus == ours
    assert plus.active
    assert plus.teacher_head == "probe", "the config's own values hold where the regularizers are on"


def test_a_name_with_reg_turns_on_what_the_config_turns_off():
    values = configure({**CONFIG, "regularization": "off"}, Variant.parse("lora+reg"))
    assert values["regularization"] is True


def test_another_methods_options_are_left_out_and_a_misspelt_one_is_not():
    lora, pissa = cells("lora,pissa")
    assert lora.config.method.adapt_options() == {}
    assert pissa.config.method.adapt_options() == {"svd": "randomized", "svd_iterations": 2}
    with pytest.raises(BALoraError, match="rnak"):
        plan({**CONFIG, "method": {"rnak": 4}}, [Variant.parse("lora")], [1], {}, Path("out"))


def test_an_axis_that_means_nothing_to_a_variant_gives_it_one_run():
    made = cells("pissa,balora,full", axes={"regularization.consistency": [0.1, 0.2], "method.rank": [2, 4]})
    found = {name: [c.axes for c in made if c.variant.name == name] for name in ("pissa", "balora", "full")}
    assert found["full"] == [{}]
    assert found["pissa"] == [{"method.rank": 2}, {"method.rank": 4}]
    assert len(found["balora"]) == 4
    assert [c.config.regularization.consistency for c in made if c.variant.name == "balora"] == [0.1, 0.1, 0.2, 0.2]


def test_an_override_may_be_for_one_variant():
    general, variants = read_variants(
        ["lora", "lora+reg"], ["model=C:/x", "lora+reg:training.learning_rate=0.5", "lora:method.rank=2"]
    )
    assert general == ["model=C:/x"], "a colon in a value is the value's"
    lora, plus = plan(CONFIG, variants, [1], {}, Path("out"))
    assert (lora.config.method.rank, plus.config.method.rank) == (2, 4)
    assert plus.config.training["learning_rate"] == 0.5
    assert "learning_rate" not in lora.config.training


def test_folders_differ_where_values_do():
    made = cells("lora", axes={"data.max_length": [64, 128], "data.labels": [["a", "b"], ["a", "c"]]})
    assert len({cell.run_directory for cell in made}) == 4


@pytest.mark.parametrize(
    ("call", "words"),
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
def test_what_cannot_be_is_named(call, words: list[str]):
    with pytest.raises(BALoraError) as error:
        call()
    for word in words:
        assert word in str(error.value)


def test_the_folder_is_beside_the_configs_output_and_never_a_runs(tmp_path: Path):
    variants = [Variant.parse("lora")]
    assert lay_out(CONFIG, variants, [1])[1] == Path("runs/a-compare")
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(BALoraError, match="single run"):
        lay_out(CONFIG, variants, [1], output=tmp_path)


def test_values_that_differ_in_one_sign_have_a_run_each():
    made = cells("lora", axes={"data.train": ["a_b.jsonl", "a-b.jsonl", "a b.jsonl"]})
    assert [cell.config.data.train for cell in made] == ["a_b.jsonl", "a-b.jsonl", "a b.jsonl"]
    assert len({cell.name for cell in made}) == 3


def test_a_share_of_all_rows_stays_a_share_along_an_axis():
    made = cells("lora", axes=parse_axes(["data.subsample=0.5,1.0"]))
    assert [repr(cell.config.data.subsample) for cell in made] == ["0.5", "1.0"]
