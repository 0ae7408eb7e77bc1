"""A classifier's teacher runs once per example, and the run is the same as with a teacher that runs at every step."""

from __future__ import annotations

import pytest
import torch

from balora import BALoraError, RegularizationConfig
from balora.teacher.logit_cache import FILE, LogitCache
from balora.teacher.row_keys import KEYS, KeyedCollator, row_key
from small_runs import CONSTANT, flat, history, pissa, trainer
from tiny import labelled_rows, pad_rows, tiny_bert, tiny_llama

CONSISTENT = RegularizationConfig(consistency=0.5, diversity=0.3, spectral=0.0, **CONSTANT)


def uneven_rows(count: int = 16, labels: int = 3) -> list[dict]:
    """Return rows of different length, so that each epoch's shuffle pads them differently."""
    rows = []
    for row in labelled_rows(count, labels=labels):
        cut = 4 + len(rows) % 7
        rows.append({**row, "input_ids": row["input_ids"][:cut], "attention_mask": [1] * cut})
    return rows


@pytest.mark.parametrize("labels", [3, 1], ids=["classification", "regression"])
def test_the_teacher_runs_only_in_the_first_epoch_and_the_run_is_the_same(labels, tmp_path, asked):
    settings = {
        "config": CONSISTENT, "rows": uneven_rows(labels=labels), "max_steps": -1, "num_train_epochs": 3,
        "gradient_accumulation_steps": 2, "learning_rate": 1e-3,
    }  # fmt: skip
    found = {}
    for kind in ("auto", "off"):
        before = len(asked)
        run = trainer(pissa(lambda: tiny_bert(num_labels=labels)), tmp_path, teacher_cache=kind, **settings)
        run.train()
        found[kind] = (len(asked) - before, history(run, "consistency"), flat(run.model))
    assert found["auto"][0] == 1 + 4 and found["off"][0] == 1 + 12
    # Padding changes only the last digits.
    assert found["auto"][1] == pytest.approx(found["off"][1], rel=1e-4, abs=1e-8)
    torch.testing.assert_close(found["auto"][2], found["off"][2], atol=1e-5, rtol=1e-4)
    assert max(found["auto"][1]) > 1e-6


def test_other_padding_changes_a_logit_only_by_rounding():
    model = pissa(tiny_bert).eval()
    rows = uneven_rows()
    alone = torch.cat([model(**_inputs(pad_rows([row]))).logits for row in rows]).detach()
    together = model(**_inputs(pad_rows(rows))).logits.detach()
    assert (alone - together).abs().max() <= 16 * torch.finfo(torch.float32).eps * together.abs().max()


def test_only_drawn_sequences_are_cached(tmp_path, asked):
    config = RegularizationConfig(consistency=0.5, diversity=0.0, spectral=0.0, consistency_fraction=0.5, **CONSTANT)
    run = trainer(pissa(tiny_bert), tmp_path, config=config, rows=uneven_rows(), max_steps=3)
    run.train()
    assert len(run.logit_cache) == 3 * 2


def test_a_resumed_run_uses_the_cached_logits_of_its_checkpoint(tmp_path, asked):
    settings = {"config": CONSISTENT, "rows": uneven_rows(), "save_strategy": "steps", "save_steps": 4, "max_steps": 10}
    uninterrupted = trainer(pissa(tiny_bert), tmp_path, **settings)
    uninterrupted.train()
    assert (tmp_path / "checkpoint-4" / FILE).is_file()
    before = len(asked)
    resumed = trainer(pissa(tiny_bert), tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert len(asked) == before
    assert torch.equal(flat(uninterrupted.model), flat(resumed.model))


def sorted_by_length(rows):
    return pad_rows(sorted(rows, key=lambda row: -len(row["input_ids"])))


def masked(rows):
    batch = pad_rows(rows)
    drawn = (torch.rand(batch["input_ids"].shape) < 0.3) & (batch["attention_mask"] > 0)
    return {**batch, "input_ids": torch.where(drawn, 3, batch["input_ids"])}


@pytest.mark.parametrize("collate", [sorted_by_length, masked])
def test_a_collator_that_moves_or_changes_rows_never_gets_the_logits_of_another_row(collate, tmp_path):
    """A student that does not change equals its teacher at every step, but not the logits of another row."""
    run = trainer(
        pissa(tiny_bert), tmp_path, config=CONSISTENT, rows=uneven_rows(), max_steps=-1, num_train_epochs=3,
        learning_rate=1e-12, data_collator=collate, teacher_cache="auto",
    )  # fmt: skip
    run.train()
    assert max(history(run, "consistency")) < 1e-9


def test_a_ragged_column_has_a_key():
    rows = [{"input_ids": [5, 6], "spans": [[1], [1, 2]]}, {"input_ids": [5, 6], "spans": [[1], [1, 3]]}]
    assert row_key(rows[0]) != row_key(rows[1])


def test_the_teacher_runs_again_for_changed_rows(tmp_path, asked):
    class Noisy(torch.utils.data.Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, at):
            return {**labelled_rows(8)[at], "input_ids": torch.randint(4, 97, (10,)).tolist()}

    run = trainer(pissa(tiny_bert), tmp_path, config=CONSISTENT, rows=Noisy(), max_steps=4)
    run.train()
    assert len(asked) == 1 + 4


def test_get_or_compute_with_repeated_keys_and_many_rows():
    cache = LogitCache()
    requested = []

    def compute(missing):
        requested.append(missing)
        return torch.tensor([[float(at)] for at in missing], dtype=torch.bfloat16)

    assert cache.get_or_compute([b"a", b"b", b"a"], compute).tolist() == [[0.0], [1.0], [0.0]]
    assert requested == [[0, 1]]
    keys = [str(number).encode() for number in range(5000)]
    expected = cache.get_or_compute(keys, lambda missing: torch.arange(5000.0)[:, None])
    assert torch.equal(cache.get_or_compute(keys[::-1], compute), expected.flip(0)) and expected.dtype == torch.float32


def test_row_keys():
    row = {"input_ids": [1, 2, 3], "labels": 1}
    same = {"labels": torch.tensor(1), "input_ids": torch.tensor([1, 2, 3], dtype=torch.int32), "nothing": None}
    assert row_key(row) == row_key(same)
    others = [
        {**row, "labels": 2},
        {**row, "input_ids": [1, 2]},
        {**row, "more": [0]},
        {"input_ids": [1, 2], "labels": [3, 1]},
    ]
    assert len({row_key(other) for other in [row, *others]}) == 5
    batch = KeyedCollator(pad_rows)(labelled_rows(2))
    assert batch[KEYS] == [row_key(r) for r in labelled_rows(2)]


def test_an_unknown_cache_setting_is_refused(tmp_path):
    with pytest.raises(BALoraError, match="teacher_cache is auto, off or TeacherCache"):
        trainer(pissa(tiny_llama), tmp_path, teacher_cache="somewhere")
    run = trainer(pissa(tiny_llama), tmp_path)
    assert run.teacher_cache is None and run.logit_cache is None


def _inputs(batch: dict) -> dict:
    return {name: value for name, value in batch.items() if name != "labels"}
