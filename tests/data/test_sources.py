"""Sources of rows: files, folders, hub ids, splits, slices and fractions."""

from __future__ import annotations

import json

import datasets
import pytest
from huggingface_hub import constants

from balora.config.run_config import DataConfig
from balora.data.files.hub import looks_local, unreachable
from balora.data.files.sources import open_source, read_tables
from balora.errors import BALoraError


def numbers(table) -> list[int]:
    return [row["t"] for row in table.rows]


def read(train: str, **more):
    return read_tables(DataConfig(train=train, text="t", **more), {"t"}, seed=42)


def error_of(train: str, **more) -> str:
    with pytest.raises(BALoraError) as error:
        read(train, **more)
    return str(error.value)


@pytest.fixture
def ten(jsonl) -> str:
    return jsonl(*({"t": i} for i in range(10)))


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "set"
    path.mkdir()
    (path / "train.tsv").write_text("t\tn\n" + "".join(f"{i}\t0\n" for i in range(6)))
    (path / "dev.tsv").write_text("t\tn\n7\t0\n8\t0\n")
    (path / "LICENSE").write_text("MIT")
    return str(path)


@pytest.mark.parametrize(
    ("split", "rows"),
    [
        (None, range(10)), ("train", range(10)), ("train[:3]", range(3)), ("[:3]", range(3)), ("[2:4]", range(2, 4)),
        ("train[8:]", [8, 9]), ("train[-2:]", [8, 9]), ("[:20%]", [0, 1]), ("train[:2]+train[8:]", [0, 1, 8, 9]),
        ("[:999]", range(10)),
    ],
)  # fmt: skip
def test_slices_of_a_file(ten, split, rows):
    assert numbers(read(ten, split=split)[0]) == list(rows)


@pytest.mark.parametrize("split", ["train[:", "test", "train[a:b]", "train[1:2:3]", "[5]"])
def test_wrong_slices_are_refused(ten, split):
    message = error_of(ten, split=split)
    assert "has no split" in message
    assert "it has train, and a slice is written train[:8000]" in message


def test_an_empty_slice_is_refused(ten):
    assert "The split train[5:5]" in error_of(ten, split="train[5:5]")


def test_a_folder_has_splits(folder):
    train, evaluation = read(folder, eval="dev")
    assert (len(train.rows), numbers(evaluation)) == (6, ["7", "8"])
    assert numbers(read(folder, eval="validation[:1]")[1]) == ["7"]
    assert "it has validation, train" in error_of(folder, eval="test")
    assert "data.eval 'test' is not a fraction and not a file, and as a split:" in error_of(folder, eval="test")


def test_only_the_requested_splits_are_read(folder, tmp_path):
    (tmp_path / "set" / "dev.tsv").write_text("broken\nline\twith more\n")
    assert len(read(folder)[0].rows) == 6


def test_shards_of_a_split_are_joined(tmp_path):
    for shard in range(2):
        (tmp_path / f"train-{shard:05d}-of-00002.jsonl").write_text(json.dumps({"t": shard}) + "\n")
    table, _ = read(str(tmp_path))
    assert numbers(table) == [0, 1]
    assert table.locations[1].endswith("train-00001-of-00002.jsonl line 1")


def test_a_folder_with_one_file_is_read_as_that_file(tmp_path):
    (tmp_path / "pairs.jsonl").write_text('{"t": 1}')
    assert numbers(read(str(tmp_path))[0]) == [1]


def test_unusable_folders_are_refused(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    assert "holds no data file (.jsonl" in error_of(str(tmp_path / "empty"))
    (tmp_path / "set" / "train.jsonl").write_text('{"t": 1}')
    assert "holds several files for the split train: train.jsonl, train.tsv" in error_of(folder)


def test_a_missing_path_suggests_the_nearest_name(tmp_path, folder):
    assert error_of(str(tmp_path / "sets")).endswith("(data.train). Did you mean 'set'?")
    assert "There is no data file" in error_of(str(tmp_path / "gone.csv"))
    assert "There is no data file" in error_of(folder, eval=str(tmp_path / "dev.tsv"))


def test_a_configuration_of_a_local_file_is_refused(ten):
    assert "data.name 'main' is the configuration of a hub dataset" in error_of(ten, name="main")


def test_eval_can_be_a_slice_of_a_file(ten, jsonl):
    other = jsonl({"t": 100}, {"t": 101}, name="other.jsonl")
    assert numbers(read(ten, eval=other)[1]) == [100, 101]
    assert numbers(read(ten, eval=f"{other}[:1]")[1]) == [100]
    assert numbers(read(ten, split="[:8]", eval="train[8:]")[1]) == [8, 9]


def test_the_seed_chooses_the_evaluation_rows(ten):
    def divide(seed: int, fraction: float = 0.3) -> tuple[list[int], list[int]]:
        train, evaluation = read_tables(DataConfig(train=ten, text="t", eval=fraction), {"t"}, seed)
        return numbers(train), numbers(evaluation)

    train, evaluation = divide(1)
    assert len(evaluation) == 3
    assert sorted(train + evaluation) == list(range(10))
    assert train == sorted(train)
    assert evaluation == sorted(evaluation)
    assert divide(1) == (train, evaluation)
    assert divide(2) != (train, evaluation)
    assert len(divide(1, 0.001)[1]) == 1
    assert len(divide(1, 0.999)[0]) == 1


def test_one_row_cannot_be_divided(jsonl):
    assert "has one row, which cannot be divided" in error_of(jsonl({"t": 1}), eval=0.5)


# --- the hub ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "local"),
    [
        ("openai/gsm8k", False),
        ("glue", False),
        ("a.b/c-d_e", False),
        ("./glue", True),
        ("../x/y", True),
        ("/x/y", True),
        ("~/x", True),
        ("a/b/c", True),
        ("train.jsonl", True),
        ("data/dev.TSV", True),
        ("my data", True),
        ("a\\b", True),
    ],
)
def test_hub_ids_and_paths(name, local):
    assert looks_local(name, (".jsonl", ".tsv")) is local


def test_an_existing_path_is_local(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not looks_local("some/folder")
    (tmp_path / "some" / "folder").mkdir(parents=True)
    assert looks_local("some/folder")


def test_a_hub_id_without_network_is_reported(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    assert error_of("nobody-here/no-such-data", split="train[:10]") == (
        "nobody-here/no-such-data is not a local file or folder, and as a hub id it could not be reached. Check the "
        "connection, or give a local file in data.train."
    )


def _hub(monkeypatch, result) -> list[tuple]:
    asked = []

    def load_dataset(name, configuration, *, split):
        asked.append((name, configuration, split))
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_a_hub_dataset_is_requested_as_configured(monkeypatch):
    features = datasets.Features({"t": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    asked = _hub(monkeypatch, datasets.Dataset.from_dict({"t": ["a", "b"], "label": [0, 1]}, features=features))
    train, evaluation = read("glue", name="sst2", split="train[:2]", eval="validation")
    assert asked == [("glue", "sst2", "train[:2]"), ("glue", "sst2", "validation")]
    assert list(train.rows) == [{"t": "a"}, {"t": "b"}], "only the columns that are read"
    assert train.columns == ("t", "label")
    assert train.class_names == {"label": ("neg", "pos")}
    assert evaluation.locations == ["glue (validation) row 1", "glue (validation) row 2"]
    read("glue")
    read("glue", split="[:1]")
    assert asked[2:] == [("glue", None, "train"), ("glue", None, "train[:1]")]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionError("Couldn't reach it"), "could not be reached"),
        (datasets.exceptions.DatasetNotFoundError("no"), "There is no dataset glue, neither locally nor on the hub"),
        (ValueError("Unknown split \"trian\". Should be one of ['train']."), "split train): Unknown split"),
        (RuntimeError("Dataset scripts are no longer supported"), "Dataset scripts are no longer supported."),
    ],
)
def test_errors_of_the_hub_are_reported(monkeypatch, error, reason):
    _hub(monkeypatch, error)
    message = error_of("glue")
    assert reason in message
    assert "\n" not in message


def test_an_empty_hub_split_is_refused(monkeypatch):
    _hub(monkeypatch, datasets.Dataset.from_dict({"t": []}))
    assert "The split train of glue has no rows" in error_of("glue")


def test_a_connection_error_is_found_among_the_causes():
    outer = OSError("something else")
    outer.__cause__ = ConnectionError()
    assert unreachable(outer)
    assert not unreachable(ValueError("wrong name"))


def test_open_source_expands_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "d.jsonl").write_text('{"t": 1}')
    assert numbers(open_source("~/d.jsonl").read("train")) == [1]
