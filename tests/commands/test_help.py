"""What every command prints: in the list of commands, for --help, and for flags that it does not have."""

import importlib
import re

import pytest

from tests.support.command_line import call, refused
from tsallis_rl.__main__ import main as list_commands
from tsallis_rl.config.files import field_names, load_config

COMMANDS = {  # module -> flags without which it does nothing
    "main": [], "sweep": [], "tasks.__main__": [], "export": ["checkpoint", "out"], "replay": ["run", "step"],
    "regenerate": ["run", "step", "example", "rollout"], "laboratory.__main__": ["out"], "report.__main__": [],
    "evaluate": [],
}  # fmt: skip


def test_the_list_of_commands_has_a_line_for_each_and_refuses_a_command_as_a_word(capfd):
    assert call(list_commands) is None
    listed = re.findall(r"^  python -m tsallis_rl\.(\w+) +([A-Z].+\.)$", capfd.readouterr().out, re.MULTILINE)
    assert sorted(name for name, _ in listed) == sorted(name.removesuffix(".__main__") for name in COMMANDS)
    assert max(len(line) for _, line in listed) < 90
    assert "each command is a module, as python -m tsallis_rl.evaluate" in refused(capfd, list_commands, "evaluat")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_two_examples_of_flags_and_fields_that_there_are(name, capfd):
    module = importlib.import_module(f"tsallis_rl.{name}")
    assert call(module.main, "--help") is None
    command = f"    python -m tsallis_rl.{name.removesuffix('.__main__')} "
    examples = [line for line in capfd.readouterr().out.splitlines() if line.startswith(command)]
    assert len(examples) >= 2 and len(set(examples)) == len(examples)
    for words in map(str.split, examples):
        given = dict(word[2:].partition("=")[::2] for word in words if word.startswith("--"))
        config = load_config(given.get("config", "hops"))
        for flag in given:
            field = flag.removeprefix("config.")
            assert field in (field_names(config) if field != flag else {"config", *module.FLAGS}), words


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_refuses_in_one_sentence(name, capfd):
    module = importlib.import_module(f"tsallis_rl.{name}")
    assert call(module.main, "--help") is None
    told = capfd.readouterr().out
    assert told.startswith(module.__doc__.strip()) and all(f"--{flag}" in told for flag in COMMANDS[name])
    if COMMANDS[name]:
        assert refused(capfd, module.main) == f"--{COMMANDS[name][0]} is missing; see --help"
    source = ["--config=hops"] if name == "evaluate" else []
    assert refused(capfd, module.main, *source, "--brew") == "--brew is not a flag; see --help"
    needed = [*source, *(f"--{flag}=1" for flag in COMMANDS[name])]
    assert "flags are --NAME=VALUE" in refused(capfd, module.main, "one", "two", *needed)
