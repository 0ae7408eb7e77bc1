"""Readers: every file format, and the message for a broken file."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from balora.data.files.readers import read_table
from balora.data.files.tables import BadRows, join
from balora.errors import BALoraError

ROWS = [{"q": 'one, "two"\nthree', "a": "1"}, {"q": "vier – ✓", "a": "2"}]


def error_of(path: Path) -> str:
    with pytest.raises(BALoraError) as error:
        read_table(path)
    return str(error.value)


def test_every_file_format_gives_the_same_rows(tmp_path):
    for name in ("d.jsonl", "d.json", "d.csv", "d.parquet"):
        path = tmp_path / name
        match path.suffix:
            case ".jsonl":
                path.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
            case ".json":
                path.write_text(json.dumps(ROWS, indent=1), encoding="utf-8")
            case ".csv":
                with path.open("w", newline="", encoding="utf-8") as out:
                    writer = csv.DictWriter(out, ["q", "a"])
                    writer.writeheader()
                    writer.writerows(ROWS)
            case _:
                pq.write_table(pa.Table.from_pylist(ROWS), path)
        table = read_table(path)
        assert list(table.rows) == ROWS, name
        assert table.columns == ("q", "a")


def test_locations_are_the_line_numbers_of_an_editor(tmp_path):
    (tmp_path / "d.jsonl").write_text('{"a": 1}\n\n{"a": 2}\n')
    assert [p.rpartition(" ")[2] for p in read_table(tmp_path / "d.jsonl").locations] == ["1", "3"]
    (tmp_path / "d.csv").write_text('a,b\n"x\ny",1\nz,2\n')
    assert [p.rpartition(" ")[2] for p in read_table(tmp_path / "d.csv").locations] == ["2", "4"]
    (tmp_path / "d.tsv").write_text("a\tb\nx\t1\n\nz\t2\n")
    assert [p.rpartition(" ")[2] for p in read_table(tmp_path / "d.tsv").locations] == ["2", "4"]
    (tmp_path / "d.json").write_text('[{"a": 1}]')
    assert read_table(tmp_path / "d.json").locations == [f"{tmp_path / 'd.json'} row 1"]


def test_quotation_marks_in_a_tsv_are_text(tmp_path):
    path = tmp_path / "d.tsv"
    path.write_text('s\tlabel\n"He said so\t0\nan "odd" one\t1\r\nlast"\t0', encoding="utf-8")
    assert [row["s"] for row in read_table(path).rows] == ['"He said so', 'an "odd" one', 'last"']
    assert [row["label"] for row in read_table(path).rows] == ["0", "1", "0"]


def test_unusual_line_separators_do_not_end_a_line(tmp_path):
    text = "a\u2028b\x85c\x1cd"
    (tmp_path / "d.jsonl").write_text(json.dumps({"t": text}, ensure_ascii=False) + "\n", encoding="utf-8")
    (tmp_path / "d.tsv").write_text(f"t\tn\n{text}\t1\n", encoding="utf-8")
    assert read_table(tmp_path / "d.jsonl").rows == [{"t": text}]
    assert read_table(tmp_path / "d.tsv").rows == [{"t": text, "n": "1"}]


def test_a_byte_order_mark_is_ignored(tmp_path):
    for name, text in (("d.tsv", "a\tb\n1\t2\n"), ("d.csv", "a,b\n1,2\n"), ("d.jsonl", '{"a": "1", "b": "2"}\n')):
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        assert read_table(tmp_path / name).rows == [{"a": "1", "b": "2"}]


def test_json_under_data_and_json_lines_named_json(tmp_path):
    (tmp_path / "d.json").write_text('{"data": [{"a": 1}]}')
    assert read_table(tmp_path / "d.json").rows == [{"a": 1}]
    (tmp_path / "e.json").write_text('{"a": 1}\n{"a": 2}\n')
    assert read_table(tmp_path / "e.json").rows == [{"a": 1}, {"a": 2}]


def test_a_field_can_be_longer_than_the_default_limit_of_csv(tmp_path):
    limit = csv.field_size_limit()
    (tmp_path / "d.csv").write_text("a,b\n" + "x" * 200_000 + ",1\n")
    assert len(read_table(tmp_path / "d.csv").rows[0]["a"]) == 200_000
    assert csv.field_size_limit() == limit, "the limit of the process is restored"


def test_columns_are_those_of_all_rows(tmp_path):
    (tmp_path / "d.jsonl").write_text('{"a": 1}\n{"b": 2}\n')
    assert read_table(tmp_path / "d.jsonl").columns == ("a", "b")


def test_at_most_three_broken_jsonl_lines_are_named(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text('{"a": 1}\n{"a": 2\n{"a": 3}\n')
    assert error_of(path) == (
        f"A row of the data cannot be used. {path} line 2: not valid JSON (Expecting ',' delimiter at character 8)."
    )
    path.write_text('{"a": 1}\nx\n[1]\n"text"\n7\n{\n')
    message = error_of(path)
    assert message.startswith("5 rows of the data cannot be used. ")
    assert f"{path} line 2: not valid JSON" in message
    assert f"{path} line 3: not an object with columns but [1]" in message
    assert message.endswith("; and 2 more.")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("d.json", '[{"a": 1},\n{"a" 2}]', "d.json line 2: not valid JSON"),
        ("d.json", '{"a": 1}', "must hold a list of objects"),
        ("d.json", "[1, 2]", "2 rows of the data cannot be used"),
        ("d.csv", 'a,b\n"x"y,1\n', "d.csv line 2: not valid CSV"),
        ("d.csv", "a,b\n1,2\n1,2,3\n4\n", "2 rows of the data cannot be used"),
        ("d.tsv", "a\tb\n1\t2\n1\n", "d.tsv line 3: 1 fields, but the first line names 2 columns"),
        ("d.tsv", "a\ta\n1\t2\n", "names a column twice"),
        ("d.parquet", "PAR1 no", "is not a readable Parquet file"),
        ("d.txt", "a", "not of a known kind; data files end in .jsonl, .json, .csv, .tsv, .parquet"),
        ("d.jsonl", "", "is empty: it has no rows"),
        ("d.jsonl", "\n\n", "is empty: it has no rows"),
        ("d.json", "", "is empty: it has no rows"),
        ("d.json", "[]", "is empty: it has no rows"),
        ("d.csv", "a,b\n", "is empty: it has no rows"),
        ("d.tsv", "", "is empty: it has no rows"),
    ],
)
def test_broken_files_are_reported(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    assert message in error_of(tmp_path / name)


def test_a_missing_file_suggests_the_nearest_name(tmp_path):
    (tmp_path / "train.jsonl").write_text("{}")
    assert error_of(tmp_path / "trian.jsonl").endswith("trian.jsonl. Did you mean 'train.jsonl'?")
    assert "There is no data file" in error_of(tmp_path / "none" / "train.jsonl")


def test_a_file_that_is_not_utf_8_is_refused(tmp_path):
    (tmp_path / "d.tsv").write_bytes("a\tb\ncaf\xe9\t1\n".encode("latin-1"))
    assert "is not UTF-8 text" in error_of(tmp_path / "d.tsv")


def test_joined_tables_keep_their_locations(tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(json.dumps({"x": name}))
    table = join([read_table(tmp_path / "a.jsonl"), read_table(tmp_path / "b.jsonl")])
    assert [row["x"] for row in table.rows] == ["a.jsonl", "b.jsonl"]
    assert [Path(location.split()[0]).name for location in table.locations] == ["a.jsonl", "b.jsonl"]


def test_without_bad_rows_no_error_is_raised():
    BadRows().raise_if_any()
