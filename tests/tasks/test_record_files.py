"""Files of records as users have them: long ones, numbers, gzip, CSV and parquet."""

import gzip
import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsallis_rl.runs.errors import UserError
from tsallis_rl.tasks import record_files
from tsallis_rl.tasks.record_files import Written, file_values, number_text


def values(path):
    return [value for _, value in file_values(path)]


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("5", "5"),
        ("-0", "0"),
        ("2.50", "2.5"),
        ("3.0", "3"),
        ("-0.0", "0"),
        ("1e3", "1000"),
        ("1.25E-5", "0.0000125"),
        ("0.1234567890123456789012345", "0.1234567890123456789012345"),
        ("7" * 5000, "7" * 5000),
        ("1e400", "1" + "0" * 400),
    ],
)
def test_a_number_is_written_with_every_digit_that_the_file_has(tmp_path, written, text):
    (tmp_path / "a.jsonl").write_text(f'{{"n": {written}}}')
    assert number_text(values(tmp_path / "a.jsonl")[0]["n"], "here") == text


@pytest.mark.parametrize(
    "number",
    [float("nan"), float("inf"), Written("1e99999999"), Written("-1e-99999999999999999999"), Written("1e-99999999")],
)
def test_a_number_that_has_no_text_names_where_it_stands(number):
    with pytest.raises(UserError, match=r"^mine, line 2: field 'answer' is "):
        number_text(number, "mine, line 2: field 'answer'")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=40, deadline=None)
@given(st.lists(JSON, max_size=6), st.integers(1, 9), st.booleans())
def test_an_array_is_read_alike_however_the_file_is_cut_into_chunks(tmp_path_factory, records, chunk, ascii_only):
    file = tmp_path_factory.getbasetemp() / "cut.json"
    file.write_text(
        json.dumps(records, ensure_ascii=ascii_only, indent=chunk % 3 or None), encoding="utf-8", newline=""
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record_files, "_CHUNK", chunk)
        assert values(file) == records


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv"])
def test_a_file_is_read_as_a_stream(tmp_path, name):
    record = json.dumps({"prompt": "x" * 1000})
    content = {
        "a.json": f"[{', '.join([record] * 20_000)}]",
        "a.jsonl": f"{record}\n" * 20_000,
        "a.csv": "prompt\n" + f"{'x' * 1000}\n" * 20_000,
    }
    (tmp_path / name).write_text(content.pop(name))
    tracemalloc.start()
    assert sum(1 for _ in file_values(tmp_path / name)) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20  # of 20 MiB


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_an_error_far_inside_a_file_names_record_and_place(tmp_path, name, monkeypatch):
    monkeypatch.setattr(record_files, "_CHUNK", 64)
    records = [json.dumps({"prompt": "é" * 50, "n": i}) for i in range(100)]
    records[70] = records[70].replace('"n": 70', '"n": x')
    whole = "\n".join(records) if name == "a.jsonl" else f"[{', '.join(records)}]"
    (tmp_path / name).write_text(whole, encoding="utf-8")
    place = rf"record 70 .*Expecting value at character {whole.index(': x') + 2}\)"
    with pytest.raises(UserError, match="line 71: .*Expecting value" if name == "a.jsonl" else place):
        values(tmp_path / name)
    (tmp_path / name).write_bytes(whole.replace("x", "5").encode().replace(b"c3a9", b"") + b"\n\xff")
    with pytest.raises(UserError, match=rf"line {101 if name == 'a.jsonl' else 2}: byte 0xff is not UTF-8"):
        values(tmp_path / name)


def test_gzip_is_read_by_its_content_and_a_damaged_one_is_a_sentence(tmp_path):
    packed = gzip.compress(b'{"a": 1}\n{"a": 2}\n' * 200)
    for name in ("a.jsonl.gz", "a.jsonl"):
        (tmp_path / name).write_bytes(packed)
        assert len(values(tmp_path / name)) == 400
        for damaged in (packed[:-9], packed[:20] + b"\xff" * 9 + packed[29:]):
            (tmp_path / name).write_bytes(damaged)
            with pytest.raises(UserError, match=r"is cut off or damaged \(.*; download the file again"):
                values(tmp_path / name)


def test_a_pipe_or_a_device_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    for path in (tmp_path / "a.jsonl", Path("/dev/zero")):
        with pytest.raises(UserError, match=rf"^{path} is a pipe or a device, which may be read without end"):
            values(path)


def test_csv_keeps_text_as_it_is_and_names_the_line(tmp_path):
    file = tmp_path / "a.csv"
    file.write_bytes(b'\xef\xbb\xbfprompt,answer\r\n"a, ""b""\nc",2.50\r\n\r\n\xc3\xa9,\r\n')
    assert list(file_values(file)) == [
        ("line 2", {"prompt": 'a, "b"\nc', "answer": "2.50"}),
        ("line 5", {"prompt": "é", "answer": ""}),
    ]
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(b"prompt\tanswer\na, b\t1\n"))
    assert values(tmp_path / "a.tsv.gz") == [{"prompt": "a, b", "answer": "1"}]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"a,b\n1,2\n3,4,5\n", r"line 3: 3 fields, the first line names 2 columns \(a, b\); put .*double quotes"),
        (b"a,b\n1\n", r"line 2: 1 fields"),
        (b"a,b,a\n", r"line 1: two columns are named 'a'; rename one"),
        (b"a;b\n1;2\n", r"line 1: the columns are separated by ';', expected ','; write it again with commas as"),
        (b"a\tb\n1\t2\n", r"line 1: the columns are separated by '\\t', .*or with tabs as \.tsv"),
        (b'a,b\n1,"2\n', r"line \d: not valid CSV \(.*\); write it again"),
        (b"a,b\n1,\xe9\n", r"byte 0xe9 is not UTF-8; save the file as UTF-8"),
    ],
)
def test_csv_that_is_not_as_it_must_be_is_one_sentence(tmp_path, content, says):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(UserError, match=says):
        values(tmp_path / "a.csv")


def test_parquet_is_read_and_a_damaged_one_is_a_sentence(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    pyarrow.parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"prompt": f"q{i}", "answer": i / 2, "aliases": [str(i)] if i else None} for i in range(600)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert values(tmp_path / "a.parquet") == rows
    whole = (tmp_path / "a.parquet").read_bytes()
    for damaged in (whole[:-20], b"", b"prompt,answer\n"):
        (tmp_path / "a.parquet").write_bytes(damaged)
        with pytest.raises(UserError, match=r"is no parquet file, or damaged \(.*\); write it again"):
            values(tmp_path / "a.parquet")


def test_the_end_of_a_name_may_be_in_capitals(tmp_path):
    (tmp_path / "A.CSV").write_bytes(b"a\n1\n")
    (tmp_path / "A.Tsv.GZ").write_bytes(gzip.compress(b"a\tb\n1\t2\n"))
    assert values(tmp_path / "A.CSV") == [{"a": "1"}] and values(tmp_path / "A.Tsv.GZ") == [{"a": "1", "b": "2"}]


def test_numbers_of_single_and_half_precision_are_read_as_they_are_written(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    single, half = pyarrow.float32(), pyarrow.float16()
    columns = {
        "single": pyarrow.array([0.1, None, 16777216.0], single),
        "half": pyarrow.array(np.array([0.1, 5.0, 65504.0], np.float16), half),
        "list": pyarrow.array([[0.1, 2.5], None, []], pyarrow.list_(single)),
        "struct": pyarrow.array([{"x": 0.1}, None, {"x": None}], pyarrow.struct({"x": single})),
        "category": pyarrow.array([0.1, None, 0.1], single).dictionary_encode(),
        "map": pyarrow.array([[("x", 0.5)], None, []], pyarrow.map_(pyarrow.string(), single)),
        "double": pyarrow.array([0.1, 0.1 + 0.2, 1e300], pyarrow.float64()),
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    first, second, third = values(tmp_path / "a.parquet")
    assert (
        number_text(first["single"], "") == number_text(first["half"], "") == number_text(first["double"], "") == "0.1"
    )
    assert number_text(first["category"], "") == "0.1" and first["map"] == [("x", 0.5)]
    assert [number_text(item, "") for item in first["list"]] == ["0.1", "2.5"]
    assert number_text(first["struct"]["x"], "") == "0.1" and number_text(second["double"], "") == "0.30000000000000004"
    assert (
        second["single"] is second["list"] is second["struct"] is third["struct"]["x"] is None and third["list"] == []
    )
    assert number_text(third["single"], "") == "16777216" and number_text(third["half"], "") == "65504"


def test_a_parquet_column_that_python_cannot_hold_and_one_that_comes_twice_are_a_sentence(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "a.parquet"
    not_text = pyarrow.array([b"\xff"]).view(pyarrow.string())
    for column in (pyarrow.array([2**62], pyarrow.duration("s")), not_text):
        parquet.write_table(pyarrow.table({"prompt": ["q"], "more": column}), file)
        with pytest.raises(UserError, match=r"a\.parquet, column 'more' of \w+.*: a value cannot be read \("):
            values(file)
    parquet.write_table(pyarrow.table([["q"], ["a"], ["b"]], names=["prompt", "answer", "answer"]), file)
    with pytest.raises(UserError, match=r"a\.parquet: two columns are named 'answer'; rename one"):
        values(file)
