"""Chat templates, rendered as transformers renders them. Needs the extra `parity`; without it these are skipped."""

import pytest

from tests.support.tokenizer_files import TEMPLATE, write_model
from tsallis_rl.tasks.pretrained_tokenizers import HuggingFaceTokenizer

transformers = pytest.importorskip("transformers", reason="needs the extra parity: torch and transformers")

MESSAGES = (
    {"role": "system", "content": "You calculate.\n  Answer with a number."},
    {"role": "user", "content": " 12.5 % of 3 million?\n\n<table> | é  "},
)
TEMPLATES = {
    "qwen": TEMPLATE,
    "blocks, loops and filters": """{% for message in messages %}
    {% if loop.first and message['role'] == 'system' %}
<<SYS>>{{ message['content'] | trim }}<</SYS>>
    {% else %}
{{ bos_token }}{{ message['role'] | upper }}: {{ message['content'].strip() }}{{ eos_token }}
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}ASSISTANT:{% endif %}
""",
    "namespaces, tests and json": """{%- set ns = namespace(n=0) -%}
{%- for message in messages -%}
{%- set ns.n = ns.n + 1 -%}
{%- if message.content is string and message.role not in ['tool'] -%}
{{ ns.n }}:{{ message | tojson }}
{%- if not loop.last %}{{ '\\n' }}{% endif -%}
{%- endif -%}
{%- endfor -%}
{{- '<think>\\n' if add_generation_prompt and enable_thinking }}""",
    "loop controls": """{%- for message in messages -%}
{%- if message.role == 'system' -%}{%- continue -%}{%- endif -%}
{{- message.content -}}
{%- endfor -%}{{ tools is none }}""",
}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_text_and_ids_are_those_of_transformers(tmp_path, template):
    config = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "chat_template": template}
    write_model(tmp_path, config=config)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), **config)
    ours = HuggingFaceTokenizer(tmp_path)
    text = theirs.apply_chat_template(list(MESSAGES), tokenize=False, add_generation_prompt=True, enable_thinking=True)
    assert ours.render(MESSAGES) == text
    assert ours.encode_prompt(MESSAGES) == theirs(text, add_special_tokens=False)["input_ids"]
