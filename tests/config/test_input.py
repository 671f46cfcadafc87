"""What people and files hand in: one sentence or what it says, whatever it is, and no code of it runs."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.paths import ROOT
from tests.support.runs import small
from tests.support.tokenizer_files import write_model
from tsallis_rl.config import Choice, parse_argument
from tsallis_rl.runs.errors import UserError
from tsallis_rl.runs.run_directory import RunDirectory
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
        for call in ("import pickle", "allow_pickle=True", " eval(", "exec(", "trust_remote_code", "torch.load"):
            assert call not in source.replace("exec_module(", ""), f"{file}: {call}"


@pytest.mark.parametrize("reach", ["().__class__.__base__.__subclasses__()", "messages.append(1)"])
def test_a_chat_template_is_confined_to_its_sandbox(tmp_path, reach):
    write_model(tmp_path, config={"eos_token": "<|im_end|>", "chat_template": f"{{{{ {reach} }}}}"})
    with pytest.raises(UserError, match=r"chat template cannot render a prompt \(access to attribute .* is unsafe"):
        HuggingFaceTokenizer(tmp_path).render(({"role": "user", "content": "x"},))
