"""Files that unpack to far more than they hold, and files separated by tabs with backslashes before special characters."""

from __future__ import annotations

import bz2
import gzip
import json
import logging
import lzma
import resource

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from balora.data.files import compressed
from balora.data.files.readers import read_table
from balora.errors import BALoraError

LARGE = 24 << 20


def error_of(path) -> str:
    with pytest.raises(BALoraError) as error:
        read_table(path)
    return str(error.value)


@pytest.mark.parametrize(
    "name", ["d.jsonl.gz", pytest.param("d.jsonl.bz2", marks=pytest.mark.slow), "d.csv.xz", "d.tsv.zst"]
)
def test_a_bomb_is_refused_without_memory_for_its_content(tmp_path, monkeypatch, name):
    monkeypatch.setattr(compressed, "_ALWAYS_ALLOWED", 2 << 20)  # the compression of a larger file takes seconds
    start, zeros = b'{"t": "', bytes(LARGE)
    match name.rpartition(".")[2]:
        case "gz":
            content = gzip.compress(start + zeros, compresslevel=6)
        case "bz2":
            content = bz2.compress(start + zeros)
        case "xz":
            content = lzma.compress(start + zeros, preset=0)
        case _:
            content = pa.compress(start + zeros, codec="zstd", asbytes=True)
    del zeros
    path = tmp_path / name
    path.write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = error_of(path)
    assert message.startswith(f"{path} has {len(content):,} bytes and unpacks to more than ")
    assert "unpack the file and give the unpacked one" in message
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 << 10  # KiB


def test_a_parquet_file_of_one_repeated_text_is_refused(tmp_path):
    path = tmp_path / "d.parquet"
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), pa.array(["x" * (1 << 20)]))
    pq.write_table(pa.table({"t": column}), path, store_schema=False)
    assert path.stat().st_size < 200_000
    assert "unpacks to more than" in error_of(path)


def test_repetitive_rows_are_no_bomb(tmp_path):
    path = tmp_path / "d.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"t": "the same row"}\n' * 20_000))
    assert path.stat().st_size < 5_000
    assert len(read_table(path).rows) == 20_000


@pytest.mark.parametrize(
    ("text", "texts", "said"),
    [
        # pandas' to_csv(sep="\t", quoting=QUOTE_NONE, escapechar="\\")
        ("t\tn\na\\\tb\t1\nc \\\\alpha \\\"d\\\"\t2\n", ["a\tb", 'c \\alpha "d"'], "has backslashes before tabs or line breaks"),
        ("t\tn\ntwo\\\nlines\t1\nc\t2\n", ["two\nlines", "c"], "has backslashes before tabs or line breaks"),
        # PostgreSQL's COPY
        ("t\tn\na\\tb\\nc\t1\n\\N\t2\nd\\\\tau\t\\N\n", ["a\tb\nc", "", "d\\tau"], "2 cells \\N, which are read as empty; \\t"),
        ("t\tn\n\\\\N\t1\n\\N\t2\n", ["\\N", ""], "1 cells \\N"),
        ("t\tn\n\\alpha\\nu\t1\r\n\\N\t\\N\r\n", ["\\alpha\\nu", ""], "2 cells \\N, which are read as empty."),
        # Both readings are possible.
        ("t\tn\nfine\t1\na\\nb\t2\n", ["fine", "a\\nb"], "line 3 has a backslash, and every backslash"),
        # LaTeX, and a path
        ("t\tn\n\\alpha\\nu\t1\nC:\\dir\\\t2\n", None, "fields, but the first line names 2 columns"),
        ("t\tn\n\\alpha \\\\ \\nu\t1\nC:\\data\t2\n", ["\\alpha \\\\ \\nu", "C:\\data"], None),
    ],
)  # fmt: skip
def test_backslashes_of_a_tsv_are_text_or_escapes(tmp_path, caplog, text, texts, said):
    path = tmp_path / "d.tsv"
    path.write_text(text, newline="")
    if texts is None:
        text += "broken\n"
        path.write_text(text, newline="")
        assert said in error_of(path)
        return
    with caplog.at_level(logging.WARNING, logger="balora"):
        assert [row["t"] for row in read_table(path).rows] == texts
    assert said in caplog.text if said else not caplog.text


def test_rows_after_an_escaped_line_break_keep_their_lines(tmp_path):
    path = tmp_path / "d.tsv"
    path.write_text("t\tn\ntwo\\\nlines\t1\n\nc\t2\n")
    assert [location.rpartition(" ")[2] for location in read_table(path).locations] == ["2", "5"]


def test_a_csv_with_backslashes_before_quotation_marks_says_how_to_rewrite_it(tmp_path):
    path = tmp_path / "d.csv"
    path.write_text('t,n\n"she said \\"hi\\" twice",1\n')
    assert "pandas.read_csv(escapechar='\\\\')" in error_of(path)


def test_json_lines_keep_their_escapes(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"t": "a\tb\\N"}) + "\n")
    assert read_table(path).rows == [{"t": "a\tb\\N"}]
