"""Data as other programs write them: quoted TSV, compressed files, folders, clones, splits, patterns and lists.

Each input comes with the rows that are right, or with the sentence that refuses it.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from functools import partial
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from balora.config.run_config import DataConfig
from balora.data.examples import load_examples
from balora.data.files.readers import read_splits, read_table
from balora.data.files.sources import open_source, read_tables
from balora.errors import BALoraError
from balora.evaluation.data import HubDataset, read_rows

packed = partial(gzip.compress, mtime=0)  # without the time, which would be a part of the names of tests


def lines(*numbers: int) -> str:
    return "".join(f'{{"t": {number}}}\n' for number in numbers)


def write(folder: Path, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def read(train, **more) -> tuple[list[int], list[int] | None]:
    tables = read_tables(DataConfig(train=train, text="t", **more), {"t"}, seed=42)
    first, second = ([row["t"] for row in table.rows] if table else None for table in tables)
    return first or [], second


def parquet(*numbers: int) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"t": list(numbers)}), sink)
    return sink.getvalue().to_pybytes()


# --- quotation marks in files separated by tabs -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "texts", "said"),
    [
        ('t\tn\n"she said ""hi"""\t1\nplain\t2\n', ['she said "hi"', "plain"], "is quoted as in CSV"),
        ('t\tn\n"two\nlines"\t1\nplain\t2\n', ["two\nlines", "plain"], "is quoted as in CSV"),
        ('t\tn\r\n"two\nlines"\t"1"\r\nplain\t2', ["two\nlines", "plain"], "is quoted as in CSV"),
        ('t\tn\n"a\ttab"\t1\nplain\t2\n', ["a\ttab", "plain"], "is quoted as in CSV"),
        ('"t"\t"n"\n"one"\t1\n"two"\t2\n', ["one", "two"], "is quoted as in CSV"),
        ('t\tn\n"one, two"\t1\nplain\t2\n', ["one, two", "plain"], "is quoted as in CSV"),
        ('t\tn\n"one, two"\t1\nthree, four\t2\n', ['"one, two"', "three, four"], ""),
        ('t\tn\n"Yes"\t1\nplain\t2\n', ['"Yes"', "plain"], ""),
        ('t\tn\n"He said\t1\nso"\t2\n', ['"He said', 'so"'], "all quotation marks are read as text"),
        ('"t"\t"n"\n"a\tb\n"\t"1"\n', ["a\tb\n"], "is quoted as in CSV"),
        ('t\tn\n"He said so\t1\nan "odd" one\t2\n', ['"He said so', 'an "odd" one'], ""),
        ('t\tn\n"Yes"\t1\n"No"\t2\n', ['"Yes"', '"No"'], "all values of 't' are in quotation marks"),
        ('t\tn\n"a ""b"""\t1\n5" disk\t2\n', ['"a ""b"""', '5" disk'], "not quoted throughout"),
    ],
)  # fmt: skip
def test_quotation_marks_are_undone_if_the_file_is_quoted(tmp_path, caplog, text, texts, said):
    write(tmp_path, {"d.tsv": text})
    assert [row["t"] for row in read_table(tmp_path / "d.tsv").rows] == texts
    assert said in caplog.text
    assert bool(said) == bool(caplog.text)


def test_rows_of_a_quoted_file_keep_their_lines(tmp_path):
    write(tmp_path, {"d.tsv": 't\tn\n"two\nlines"\t1\n\nplain\t2\n'})
    assert [location.rpartition(" ")[2] for location in read_table(tmp_path / "d.tsv").locations] == ["2", "5"]


# --- columns ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("d.csv", "t,n,,,\na,1,,,\n"), ("d.csv", ",t,n\n0,a,1\n"), ("d.tsv", "\tt\tn\n0\ta\t1\n"), ("d.csv", "t,n,\na,1\n"),
        ("d.csv", "t, ,n\na,x,1\n"), ("d.csv", "t,,n,\na,x,1,y\n"), ("d.csv", "t,n,,\na,1,\n"),
    ],
)  # fmt: skip
def test_columns_without_a_name_do_no_harm(tmp_path, name, text):
    write(tmp_path, {name: text})
    data = DataConfig(train=str(tmp_path / name), prompt="t", response="n")
    assert load_examples(data, "generation").train[:] == {"prompt": ["a"], "input": [""], "response": ["1"]}
    with pytest.raises(BALoraError, match=r"has no column 'x' \(data.prompt\)\. Its columns are t, "):
        load_examples(data.model_copy(update={"prompt": "x"}), "generation")


def test_a_named_column_cannot_be_missing_in_a_row(tmp_path):
    write(tmp_path, {"d.csv": "t,n,\na\n", "e.csv": ",\n1,2\n"})
    with pytest.raises(BALoraError, match="line 2: 1 fields, but the first line names 3 columns"):
        read_table(tmp_path / "d.csv")
    with pytest.raises(BALoraError, match="names no column in its first line"):
        read_table(tmp_path / "e.csv")


# --- one file ---------------------------------------------------------------------------------------------------------

ROWS = lines(1, 2).encode()
ZSTD = pa.compress(ROWS, codec="zstd", asbytes=True)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.jsonl.gz", packed(ROWS)), ("d.jsonl.bz2", bz2.compress(ROWS)), ("d.jsonl.xz", lzma.compress(ROWS)),
        ("d.jsonl.zst", ZSTD), ("d.jsonl", packed(ROWS)), ("d.jsonl.gz", ROWS), ("D.JSONL.GZ", packed(ROWS)),
        ("d.json.gz", packed(b'[{"t": 1}, {"t": 2}]')), ("d.parquet", parquet(1, 2)),
        ("d.parquet.gz", packed(parquet(1, 2))), ("d.ndjson", ROWS),
        ("part-00000", ROWS), ("part-00000.gz", packed(ROWS)),
        ("part-r-00000", parquet(1, 2)), ("d.jsonl", b'[\n {"t": 1},\n {"t": 2}\n]'), ("d.jsonl", b'[{"t": 1}, {"t": 2}]'),
        ("d.jsonl", b'\xef\xbb\xbf[{"t": 1}, {"t": 2}]'), ("d.json", ROWS), ("d.jsonl", b'{"data": [{"t": 1},\n{"t": 2}]}'),
        ("d.json", b'{"train": [{"t": 1}, {"t": 2}]}'), ("d.json", b'{"version": "1", "Training": [{"t": 1}, {"t": 2}]}'),
        ("part-00000-0b9ae6f7-4e3c-4c3e-a0e0-0123456789ab-c000.snappy.parquet", parquet(1, 2)),
    ],
)  # fmt: skip
def test_one_file_is_read_by_its_content(tmp_path, name, content):
    write(tmp_path, {name: content})
    assert read(str(tmp_path / name)) == ([1, 2], None)
    assert read(str(tmp_path)) == ([1, 2], None), "as the only file of a folder"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.jsonl.gz", packed(ROWS * 9)[:-9], "is damaged or incomplete: it cannot be decompressed"),
        ("d.jsonl.xz", lzma.compress(ROWS * 9)[:-20], "is damaged or incomplete: it cannot be decompressed"),
        ("d.jsonl.zst", ZSTD[:-4], "cannot be"), ("d.jsonl.bz2", bz2.compress(ROWS * 9)[:-9], "cannot be decompressed"),
        ("d.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "is a Git LFS pointer, not the data"),
        ("d.jsonl", b"PK\x03\x04 zip", "is a ZIP archive: unpack it"), ("d.csv", b"<!DOCTYPE html>\n<html>", "is a web page"),
        ("part-00000", b"1,2\n3,4\n", "is not of a known kind"), ("d.txt.gz", packed(ROWS), "is not of a known kind"),
        ("d.jsonl", b'[{"t": 1},\n{"t": 2]', "line 2: not valid JSON"), ("d.jsonl", b"[1, 2]", "2 rows of the data cannot be used"),
        ("d.json", b'{"t": [1, 2]}', "It seems to hold columns; pandas writes rows with to_json(orient='records')"),
        ("d.json", b'{"t": {"0": 1, "1": 2}}', "It seems to hold columns"), ("d.jsonl", b"[" * 100_000, "nested too deeply"),
        ("d.jsonl", b'{"t": 1%s}' % (b"0" * 5000), "line 1: not valid JSON (Exceeds the limit"),
        ("d.json", b'[{"t": 1%s}]' % (b"0" * 5000), "d.json: not valid JSON (Exceeds the limit"),
        ("d.json", b'{"dev": [{"t": 1}], "test": [{"t": 2}]}', "has no split 'train'; it has validation, test"),
        ("d.arrow", b"ARROW1 no", "is not a readable Arrow file"), ("d.jsonl", packed(b""), "is empty: it has no rows"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_called_what_it_is(tmp_path, name, content, message):
    write(tmp_path, {name: content})
    with pytest.raises(BALoraError) as error:
        read(str(tmp_path / name))
    assert message in str(error.value)


def test_a_row_that_looks_like_a_file_is_a_row(tmp_path):
    write(tmp_path, {"d.jsonl": '{"data": [{"role": "user"}]}\n', "e.jsonl": '{"messages": [{"role": "user"}]}\n'})
    assert read_table(tmp_path / "d.jsonl").rows == [{"data": [{"role": "user"}]}]
    assert read_table(tmp_path / "e.jsonl").rows == [{"messages": [{"role": "user"}]}]


def test_json_has_splits(tmp_path):
    write(tmp_path, {"d.json": '{"version": 2, "train": [{"t": 1}, {"t": 2}], "dev": [{"t": 3}]}'})
    path = str(tmp_path / "d.json")
    assert read(path, eval="dev") == ([1, 2], [3])
    assert read(path, split="train[:1]", eval="validation") == ([1], [3])
    assert read_splits(Path(path))["validation"].locations == [f"{path} (validation) row 1"]
    with pytest.raises(BALoraError, match="has the splits train, validation; give a file with the rows of one"):
        read(path, eval=path)
    with pytest.raises(BALoraError, match=r"has several splits \(train, validation\)"):
        read_table(Path(path))


# --- folders ----------------------------------------------------------------------------------------------------------

README = """---
configs:
- config_name: main
  default: true
  data_files:
  - split: train
    path: main/train-*
  - split: test
    path: main/test-*
- config_name: other
  data_files: other/*.jsonl
---
# A dataset
"""


@pytest.mark.parametrize(
    ("files", "train", "evaluation"),
    [
        ({"._data.jsonl": b"\0\5\x16", ".DS_Store": b"\0", "data.jsonl": lines(1)}, [1], None),
        ({"part-00000": lines(1), "part-00001": lines(2), "_SUCCESS": "", ".part-00000.crc": b"crc\0"}, [1, 2], None),
        ({"part-00000.jsonl": lines(1), "part-00001.jsonl": lines(2)}, [1, 2], None),
        ({"0000.parquet": parquet(1), "0001.parquet": parquet(2)}, [1, 2], None),
        ({"part-00000-0b9ae6f7-4e3c-c000.json.gz": lines(1), "part-00001-0b9ae6f7-4e3c-c000.json.gz": lines(2)}, [1, 2], None),
        ({"train.jsonl.gz": packed(ROWS), "test.jsonl.gz": packed(ROWS)}, [1, 2], [1, 2]),
        ({"data/train-00000-of-00001.parquet": parquet(1), "data/test-00000-of-00001.parquet": parquet(2), "README.md": "# x",
          ".git/x.json": "{}"}, [1], [2]),
        ({"train/0000.parquet": parquet(1), "train/0001.parquet": parquet(3), "test/0000.parquet": parquet(2)}, [1, 3], [2]),
        ({"sst-2_train.jsonl": lines(1), "sst-2_test.jsonl": lines(2)}, [1], [2]),
        ({"train-v2.0.json": '[{"t": 1}]', "test-v2.0.json": '[{"t": 2}]'}, [1], [2]),
        ({"training.jsonl": lines(1), "testing.jsonl": lines(2)}, [1], [2]),
        ({"README.md": README, "main/train-0.jsonl": lines(1), "main/test-0.jsonl": lines(2), "other/x.jsonl": lines(9)}, [1], [2]),
        ({"part-00000": "", "part-00001": lines(1), "part-00002": ""}, [1], None),
        ({"train-0.csv": "t,n\n", "train-1.csv": "t,n\n1,2\n"}, ["1"], None),
        ({"__MACOSX/._a.jsonl": b"\0", "a.jsonl": lines(1)}, [1], None),
    ],
)  # fmt: skip
def test_a_folder_is_read_by_split(tmp_path, caplog, files, train, evaluation):
    write(tmp_path, files)
    assert read(str(tmp_path), eval="test" if evaluation else None) == (train, evaluation)
    assert not caplog.text


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train.jsonl": ROWS, "train.jsonl.gz": packed(ROWS)},
         "several files for the split train: train.jsonl, train.jsonl.gz"),
        ({"train.jsonl": ROWS, "train_100.jsonl": ROWS}, "several files for the split train: train.jsonl, train_100.jsonl"),
        ({"a.jsonl": ROWS, "b.jsonl": ROWS}, "has no split 'train'; it has a, b"),
        ({"test-0.jsonl": ROWS, "test-1.jsonl": ROWS}, "has no split 'train'; it has test"),
        ({"en/x.jsonl": ROWS, "de/x.jsonl": ROWS}, "There are some in de, en; give the path of one of these folders"),
        ({"part-00000": "", "part-00001": ""}, "is empty: it has no rows"),
        ({"README.md": README}, "lists files for main that are not there"),
    ],
)  # fmt: skip
def test_an_unclear_folder_is_refused(tmp_path, files, message):
    write(tmp_path, files)
    with pytest.raises(BALoraError) as error:
        read(str(tmp_path))
    assert message in str(error.value)


def test_missing_shards_are_said(tmp_path, caplog):
    write(tmp_path, {"train-00000-of-00003.jsonl": lines(1), "train-00002-of-00003.jsonl": lines(2)})
    assert read(str(tmp_path))[0] == [1, 2]
    assert "holds 2 of the 3 files train-*.jsonl: the rows of the others are not read" in caplog.text


def test_a_clone_has_the_configurations_of_its_readme(tmp_path):
    write(tmp_path, {"README.md": README, "main/train-0.jsonl": lines(1), "other/x.jsonl": lines(9)})
    assert read(str(tmp_path), name="other") == ([9], None)
    with pytest.raises(BALoraError, match=r"has no configuration 'othre' \(data.name\). Did you mean 'other'\?"):
        read(str(tmp_path), name="othre")


def test_a_readme_names_no_file_outside_its_folder(tmp_path):
    write(tmp_path, {"secret.jsonl": lines(7), "clone/README.md": README.replace("other/*.jsonl", "../secret.jsonl")})
    with pytest.raises(BALoraError, match="are not there"):
        read(str(tmp_path / "clone"), name="other")


def test_saved_datasets_are_read(tmp_path):
    rows = datasets.Dataset.from_dict({"t": [1, 2, 3], "x": ["a", "b", "c"]})
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": rows, "test": rows.select([2])}).save_to_disk(tmp_path / "two")
    assert read(str(tmp_path / "one"), split="[:2]") == ([1, 2], None)
    assert read(str(tmp_path / "two"), eval="test") == ([1, 2, 3], [3])
    assert read(str(tmp_path / "two" / "train"), eval=str(tmp_path / "one")) == ([1, 2, 3], [1, 2, 3])
    assert read(str(next((tmp_path / "one").glob("*.arrow")))) == ([1, 2, 3], None)
    next((tmp_path / "one").glob("*.arrow")).unlink()
    with pytest.raises(BALoraError, match="was saved with save_to_disk and cannot be read"):
        read(str(tmp_path / "one"))


# --- patterns and lists -----------------------------------------------------------------------------------------------


def test_patterns_and_lists_are_joined(tmp_path, caplog):
    write(tmp_path, {"a.jsonl": lines(1), "b.jsonl": lines(2), "s/train.jsonl": lines(3), "s/test.jsonl": lines(4)})
    everything = [str(tmp_path / "*.jsonl"), str(tmp_path / "s")]
    assert read(everything[0]) == ([1, 2], None)
    assert read(everything) == ([1, 2, 3], None)
    assert read(everything, split="train[1:3]", eval="test") == ([2, 3], [4])
    assert read(str(tmp_path / "[ab].jsonl"), eval=str(tmp_path / "s" / "t*t.jsonl")) == ([1, 2], [4])
    assert not caplog.text
    assert read(str(tmp_path / "s" / "*")) == ([4, 3], None)
    assert "also matches test.jsonl: these rows are read as well" in caplog.text
    write(tmp_path, {"s/README.md": "# x"})
    assert read(str(tmp_path / "s" / "*")) == ([4, 3], None)
    assert "also matches README.md, which hold no rows and are left out" in caplog.text
    caplog.clear()
    assert read([str(tmp_path / "?.jsonl"), str(tmp_path / "s" / ".." / "a.jsonl")]) == ([1, 2, 1], None)
    assert "a.jsonl more than once: the rows are read each time" in caplog.text
    with pytest.raises(BALoraError, match=r"No file matches .*\*\.csv"):
        read(str(tmp_path / "*.csv"))


def test_an_address_is_refused():
    with pytest.raises(BALoraError, match="is an address"):
        read("https://example.org/train.jsonl?download=true")


def test_evaluation_data_are_found_in_folders_and_patterns(tmp_path, monkeypatch):
    write(tmp_path, {"a.jsonl": lines(1), "dev/x-0.jsonl": lines(2), "dev/x-1.jsonl": lines(3), "both/train.jsonl": lines(4),
                     "both/test.jsonl": lines(5), "dev.jsonl.xz": lzma.compress(ROWS)})  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for name, rows in (
        ("dev", [2, 3]),
        ("./dev", [2, 3]),
        ("dev/*", [2, 3]),
        ("dev/*[:1]", [2]),
        ("dev.jsonl.xz", [1, 2]),
    ):
        assert read("a.jsonl", eval=name) == ([1], rows), name
    assert read("both", eval="test") == ([4], [5])
    with pytest.raises(BALoraError, match="has the splits test, train; give a file with the rows of one"):
        read("a.jsonl", eval="./both")


def test_tasks_read_their_data_in_the_same_ways(tmp_path):
    write(tmp_path, {"HumanEval.jsonl.gz": packed(ROWS), "d.json": '{"train": [{"t": 3}], "test": [{"t": 4}]}'})
    assert list(read_rows(str(tmp_path / "HumanEval.jsonl.gz"), HubDataset("x/y")).rows) == [{"t": 1}, {"t": 2}]
    assert list(read_rows(str(tmp_path / "d.json"), HubDataset("x/y")).rows) == [{"t": 4}]


def test_the_list_of_training_data_in_a_config():
    assert DataConfig(train=["a.jsonl", "b.jsonl"], text="t").train_sources == ("a.jsonl", "b.jsonl")
    for wrong in ([], [1], [""], {"a": 1}):
        with pytest.raises(ValueError, match="must be a hub id, a file or a folder, or a list of them"):
            DataConfig(train=wrong, text="t")


# --- classes that a source declares -----------------------------------------------------------------------------------


def declared(names: list[str], values: list[int]) -> datasets.Dataset:
    features = datasets.Features({"t": datasets.Value("string"), "l": datasets.ClassLabel(names=names)})
    return datasets.Dataset.from_dict({"t": ["x"] * len(values), "l": values}, features=features)


def classes(train, **more) -> tuple[tuple[str, ...] | None, list[int]]:
    examples = load_examples(DataConfig(train=train, text="t", label="l", **more), "classification")
    return examples.label_names, examples.train["labels"][:]


@pytest.mark.parametrize("names", [["1", "2", "3"], ["1", "0"], ["-1", "0", "1"], ["2", "0", "1"], ["neg", "pos"]])
@pytest.mark.parametrize("source", ["hub", "saved", "parquet"])
def test_numbers_are_positions_in_declared_classes(tmp_path, monkeypatch, names, source):
    rows, path = declared(names, [*range(len(names)), 0]), tmp_path / "d"
    if source == "hub":
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    elif source == "saved":
        rows.save_to_disk(path)
    else:
        path = tmp_path / "d.parquet"
        rows.to_parquet(path)
    assert classes("glue" if source == "hub" else str(path)) == (tuple(names), [*range(len(names)), 0])


def test_a_row_without_a_label_is_no_class_named_minus_one(tmp_path):
    declared(["-1", "0", "1"], [0, 1, 2, -1]).save_to_disk(tmp_path / "d")
    with pytest.raises(BALoraError, match=r"row 4: the label -1 is not one of -1, 0, 1"):
        classes(str(tmp_path / "d"))


def test_sources_that_declare_other_classes_are_refused(tmp_path, caplog):
    for name, names in (
        ("a", ["neg", "pos"]),
        ("b", ["pos", "neg"]),
        ("c", ["positive", "negative"]),
        ("d", ["1", "2"]),
    ):
        declared(names, [0, 1]).to_parquet(tmp_path / f"{name}.parquet")
    write(tmp_path, {"e.jsonl": '{"t": "x", "l": 1}\n{"t": "x", "l": 0}\n', "f.jsonl": '{"t": "x", "l": 2}\n'})
    a, b, c, d, e, f = (str(path) for path in sorted(tmp_path.iterdir()))
    for wrong in ([a, b], [a, c], [d, e]):
        with pytest.raises(BALoraError, match="its sources declare different classes"):
            classes(wrong)
    for more in ({"also": [{"train": c}]}, {"eval": b}):
        with pytest.raises(BALoraError, match="numbers its classes in the order pos"):
            classes(a, **more)
    assert classes([a, e]) == (("neg", "pos"), [0, 1, 1, 0])
    assert classes(a, labels=["bad", "good"]) == (("bad", "good"), [0, 1])
    assert not caplog.text
    assert classes(d, eval=f) == (("1", "2"), [0, 1])
    assert "its numbers are taken for the names of classes (1, 2), not for positions" in caplog.text


@pytest.mark.parametrize(
    ("values", "more", "expected"),
    [
        (["+1", "-1", "+1"], {}, (("-1", "1"), [1, 0, 1])), ([1, "-1", "+1.0"], {}, (("-1", "1"), [1, 0, 1])),
        (["+1", "-1", 1], {"labels": ["-1", "+1"]}, (("-1", "+1"), [1, 0, 1])),
        (["+1", "-1"], {"labels": [1, -1]}, (("1", "-1"), [0, 1])),
    ],
)  # fmt: skip
def test_a_plus_sign_is_no_part_of_a_number(jsonl, values, more, expected):
    assert classes(jsonl(*({"t": "x", "l": value} for value in values)), **more) == expected


def test_numbers_in_two_spellings_are_refused(jsonl):
    with pytest.raises(BALoraError, match="writes a class in several ways: '01', '1'"):
        classes(jsonl(*({"t": "x", "l": value} for value in ("01", "1", "2"))))


def test_a_folder_of_one_saved_split_keeps_its_path_in_messages(tmp_path):
    datasets.Dataset.from_dict({"t": [1]}).save_to_disk(tmp_path / "d")
    assert open_source(str(tmp_path / "d"), columns={"t"}).read("train").locations == [f"{tmp_path / 'd'} row 1"]
    assert json.dumps(read(str(tmp_path / "d"))) == "[[1], null]"
