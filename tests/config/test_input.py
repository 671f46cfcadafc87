"""Input of people and files: whatever it is, it is read or refused in one sentence, and none of its code runs."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.command_line import call
from tests.support.paths import ROOT
from tests.support.runs import small
from tests.support.tokenizer_files import write_model
from tsallis_rl.config import Choice, parse_argument
from tsallis_rl.runs.errors import UserError, as_name, one_sentence, visible
from tsallis_rl.runs.run_directory import RunDirectory
from tsallis_rl.tasks import __main__ as tasks
from tsallis_rl.tasks.pretrained_tokenizers import HuggingFaceTokenizer
from tsallis_rl.tasks.records import read_records


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 60))
def test_metrics_stay_readable_whatever_is_in_them(tmp_path_factory, noise, cut):
    folder = tmp_path_factory.mktemp("metrics")
    whole_line = b'{"step": 1, "train/loss": 0.5}\n'
    (folder / "metrics.jsonl").write_bytes(whole_line + noise + b"\n" + whole_line + whole_line[:cut][:-2])
    records = RunDirectory(folder, small()).records()
    assert records[0] == {"step": 1, "train/loss": 0.5} and sum(r == records[0] for r in records) >= 2
    assert all(isinstance(record["step"], int) for record in records)


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.binary(max_size=60), st.text(alphabet='[]{}",:0a\\\n ', max_size=60).map(str.encode)))
def test_a_file_of_anything_is_records_or_one_sentence(tmp_path_factory, data):
    file = tmp_path_factory.mktemp("records") / "data.json"
    file.write_bytes(data)
    try:
        assert all("a" in record for _, record in read_records(file, {"a": str}))
    except UserError as error:
        assert str(file) in str(error)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=40) | st.from_regex(r"(q|start|n)=.{0,12}(,(q|start|n)=.{0,12})?", fullmatch=True))
def test_arguments_of_anything_are_values_or_one_sentence(argument):
    accepted = {"q": 0.75, "n": 3, "start": Choice(("cold", "warm"))}
    try:
        found = parse_argument(argument, accepted, where="c.py")
    except UserError as error:
        assert str(error).startswith("c.py: ")
    else:
        assert [type(found[name]) for name in accepted] == [float, int, str]


def test_nothing_that_runs_code_is_read():
    for file in (ROOT / "tsallis_rl").rglob("*.py"):
        source = file.read_text()
        for code in ("import pickle", "allow_pickle=True", " eval(", "exec(", "trust_remote_code", "torch.load"):
            assert code not in source.replace("exec_module(", ""), f"{file}: {code}"


@pytest.mark.parametrize("reach", ["().__class__.__base__.__subclasses__()", "messages.append(1)"])
def test_a_chat_template_is_confined_to_its_sandbox(tmp_path, reach):
    write_model(tmp_path, config={"eos_token": "<|im_end|>", "chat_template": f"{{{{ {reach} }}}}"})
    with pytest.raises(UserError, match=r"chat template cannot render a prompt \(access to attribute .* is unsafe"):
        HuggingFaceTokenizer(tmp_path).render(({"role": "user", "content": "x"},))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J", r"\x1b[2J"), ("a\x07\x00b", r"a\x07\x00b"), ("\x9b31m", r"\x9b31m"), ("a\rb\x7f", r"a\x0db\x7f"),
        ("é\t\n問\u200b", "é\t\n問\u200b"),
    ],
)  # fmt: skip
def test_characters_that_a_terminal_would_obey_are_shown(text, shown):
    assert visible(text) == shown


def test_a_name_from_a_file_is_short_and_one_line():
    assert as_name("a\n b\x1b[2J") == r"a b\x1b[2J" and len(as_name("i" * 10**6)) < 70


def test_no_command_hands_escape_sequences_of_data_to_the_terminal(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("TSALLIS_RL_CACHE", str(tmp_path / "cache"))
    records = [{"prompt": f"q{i}\x1b[2J", "answer": "\x1b[31ma", "id": f"{i}\x1b[1m"} for i in range(40)]
    records[3]["answer"] = " "
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    config = [f"--config={ROOT / 'configs' / 'jsonl.py'}:model=tiny", "--config.task.vocab_size=300"]
    assert call(tasks.main, *config, f"--config.task.path={tmp_path / 'a.jsonl'}", "--show=1") is None
    told = capfd.readouterr().out
    assert "\x1b" not in told and r"\x1b[31ma" in told and r"empty answer (first: 3\x1b[1m)" in told
    with pytest.raises(SystemExit), one_sentence():
        raise UserError("a\x1b[2J: not there")
    assert capfd.readouterr().err == "error: a\\x1b[2J: not there\n"
