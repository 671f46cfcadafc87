"""The script that walks README and docs/ knows every command there, and names those that it does not know."""

from tests.first_hour import commands, text_of, unknown


def test_every_command_of_the_pages_is_known_and_no_other():
    assert unknown(text_of()) == []


def test_commands_are_found_in_blocks_between_backticks_and_in_programs():
    text = """
# A title
Type `python -m code`, `pip install
thing`, not `a.file` or `python -m x --q=…`.
```bash
mkdir place    # where it lies
python -m long \\
  --flag="a # b"
```
```text
printed
```
## Extending
```python
print("`python -m no.command`")
```
"""
    assert commands(text) == {
        "python -m code": "python -m code",
        "pip install thing": "pip install thing",
        "mkdir place": "mkdir place",
        'python -m long    --flag="a # b"': 'python -m long    --flag="a # b"',
        "the program under Extending": "python - <<'END'\nprint(\"`python -m no.command`\")\nEND",
    }


def test_a_new_command_and_a_rule_for_none_are_told():
    text = text_of()
    (sentence,) = unknown(f"{text}\n```bash\npython -m tsallis_rl.brew --tea\n```\n")
    assert sentence.endswith("lacks: python -m tsallis_rl.brew --tea")
    assert unknown(text.replace("mkdir sums", "")) == [
        "RULES of tests/first_hour.py has a command that no page has: mkdir sums"
    ]
