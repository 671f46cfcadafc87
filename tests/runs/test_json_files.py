"""JSON files from outside: they are read, and each of three failures has its own sentence."""

import pytest

from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.json_files import json_lines, read_object
from tsallis_rl.tasks.record_files import file_values


@pytest.mark.parametrize("read", [read_object, lambda file: list(file_values(file))])
def test_a_file_that_is_not_there_and_one_that_cannot_be_read_are_two_sentences(tmp_path, read):
    with pytest.raises(UserError, match=r"^there is no .*none\.json; "):
        read(tmp_path / "none.json")
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\); "):
        read(tmp_path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"a": ', r"is not JSON \(.*\); sow again$"),
        (b"\xff", r"is not JSON .*; sow again$"),
        (b"[" * 10**5, r"is not JSON .*; sow again$"),
        (b"[1, 2]", r"holds \[1, 2\] where an object {…} is expected; sow again$"),
    ],
)
def test_a_file_that_is_no_object_says_what_it_holds_and_what_to_do(tmp_path, content, says):
    file = tmp_path / "some.json"
    file.write_bytes(content)
    with pytest.raises(UserError, match=says):
        read_object(file, "sow again")


def test_a_log_is_read_without_what_was_cut_short(tmp_path):
    file = tmp_path / "metrics.jsonl"
    assert json_lines(file) == []
    file.write_bytes(b'{"step": 1}\n{"step": 2\n[3]\n\xff\n{"step": 4}')
    assert json_lines(file) == [{"step": 1}, {"step": 4}]
    with pytest.raises(UserError, match="make it readable"):
        json_lines(tmp_path)
